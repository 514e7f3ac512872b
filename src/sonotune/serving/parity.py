"""Whether an export, read by the tool that will serve it, says what the run was scored on.

The run recognises development clips as it is scored (its own context and decoding settings); plain `transformers`
recognises the same clips from the export. Both are scored in one way and compared by the paired bootstrap of
`sonotune compare`. One model is gone before the other is loaded.
"""

from __future__ import annotations

import gc
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonotune.adapters.kinds.gate_baking import needs_baking
from sonotune.adapters.metadata import read_metadata
from sonotune.audio.io import read
from sonotune.data.corpus import load_corpus
from sonotune.errors import ManifestError, SonotuneError
from sonotune.evaluation.compare import compare
from sonotune.evaluation.evaluate import write_predictions
from sonotune.loading import base_of, choose_family
from sonotune.metrics.intervals import MIN_BLOCKS
from sonotune.metrics.parity import outcome_of, sentence_of
from sonotune.metrics.scores import deciding, primary_score
from sonotune.models.languages import find_code, language_name
from sonotune.paths import is_folder
from sonotune.registry import is_asset, resolve_asset
from sonotune.runs import generator
from sonotune.serving.recognizer import Recognizer
from sonotune.serving.served import Request, SavedModel, Served, recognize_served, tool_of
from sonotune.tasks.base import Task
from sonotune.types import Clip, DecodingSettings, Finding, Prediction

logger = logging.getLogger(__name__)

PARITY_FILE = "parity.json"
CHECK = "export.parity"
"""Name of the finding in a run's record."""
TOLERANCE = 0.01
"""Largest difference of word error rate or accuracy that is allowed, as a fraction: one point."""
LONGEST_S = 30.0
"""Longer clips are left out: a tool that cuts them into windows does another thing than one that hears them whole."""
_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ParitySettings:
    """What is compared.

    Attributes:
        sources: Split -> manifest, as the run loads them; empty where there are none.
        split: Which of them is recognised; `eval` may be held out of `train`.
        corpus: Further arguments of `data.corpus.load_corpus`.
        open_scored: Opens the run as it is scored.
        decoding: Arguments of `Recognizer.evaluate` that it is scored with.
        language: The run's.
        clips: How many are drawn.
        seed: Of the draw and of the intervals.
    """

    sources: Mapping[str, str]
    split: str = "eval"
    corpus: Mapping[str, Any]
    open_scored: Callable[[], Recognizer]
    decoding: Mapping[str, Any]
    language: str | None = None
    clips: int = 50
    seed: int = 0


def check_parity(checkpoint: str, folder: Path, settings: ParitySettings, *, adapter: bool) -> dict[str, Any]:
    """Compare an export with the run it was made of.

    Args:
        checkpoint: The run, adapter or model that was exported.
        folder: The export.
        settings: What is compared.
        adapter: Whether the export is an adapter alone.

    Returns:
        What `parity.json` holds. `verdict` is `shown`, `not shown` or `differs` (`metrics.parity`), and `sentence` says
        it to people; `passed` is only that the estimate is within the tolerance. Where nothing could be compared,
        `equal` and `verdict` are None and `reason` says why.
    """
    found = _unchecked(settings)
    try:
        family = choose_family(checkpoint).name
        if adapter and (method := read_metadata(folder).get("adapter", "lora")) != "lora":
            return {**found, "reason": f"no other tool computes adapters of the kind {method}; serve it with sonotune"}
        tool = found["tool"] = tool_of(family, adapter=adapter)
        if tool is None:
            return {**found, "reason": f"no other tool loads a model of the family {family}; serve it with sonotune"}
        scored = _scored(settings)
        gc.collect()  # modules refer to themselves through their hooks
        found |= {"context": scored.context, "clips": len(scored.clips), "left_out": scored.left_out}
        saved = _adapter(folder) if adapter else SavedModel(folder=folder)
        try:
            served = recognize_served(family, scored.request(family, saved, settings.language))
        except Exception as error:  # the other tool's, which must not cost the export
            logger.info("%s failed", tool, exc_info=True)
            return {**found, "reason": f"{tool} failed: {type(error).__name__}: {_first_line(error)}"}
        gc.collect()
        found |= _compared(scored, served, settings)
        found |= {"verdict": outcome_of(found), "sentence": sentence_of(found)}
        if not found["passed"] and scored.task.name == "transcribe":
            found["as_others_decode"] = _as_others_decode(scored, settings)
        return found
    except SonotuneError as error:
        return {**found, "reason": _first_line(error)}


def _unchecked(settings: ParitySettings) -> dict[str, Any]:
    return {
        "equal": None,
        "equal_raw": None,
        "difference": {},
        "scored": {},
        "served": {},
        "context": None,
        "served_context": "full",
        "tool": None,
        "clips": 0,
        "asked": settings.clips,
        "left_out": 0,
        "seed": settings.seed,
        "tolerance": TOLERANCE,
        "passed": False,
        "verdict": None,
        "sentence": None,
        "reason": None,
        "differing": [],
        "as_others_decode": None,
    }


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:300]


# --- as it is scored ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    """Clips, and what the run recognised in them."""

    task: Task
    clips: Sequence[Clip]
    predictions: Sequence[Prediction]
    context: str
    rate_hz: int
    known_languages: tuple[str, ...]
    multi_label: bool
    left_out: int

    def request(self, family: str, saved: SavedModel, language: str | None) -> Request:
        """The clips for the other tool, which is told of a language what a user would tell it."""
        return Request(
            saved=saved,
            waveforms=_Recordings(self.clips, self.rate_hz),
            sample_rate_hz=self.rate_hz,
            languages=[self._told(family, saved, clip.language, language) for clip in self.clips],
            multi_label=self.multi_label,
        )

    def _told(self, family: str, saved: SavedModel, own: str | None, language: str | None) -> str | None:
        if family == "qwen3_asr":
            wanted = own or language
            return None if wanted is None else language_name(wanted)
        if family != "whisper" or not self.known_languages:
            return None
        codes = [None if name is None else find_code(name, self.known_languages) for name in (own, language)]
        if saved.base is None and codes[0] in (None, codes[1]):
            return None  # the export says it
        return codes[0] or codes[1]


def _as_others_decode(scored: _Scored, settings: ParitySettings) -> float | None:
    """The score that decides of the run itself over the whole window, without fallback: what these two are worth.

    What is left between it and the score of the export is the rounding of its weights, and the tool. None where it
    could not be found out, for nothing of this may cost the export; and where the run merges frames or has gates, which
    no other tool computes and which this pass would.
    """
    try:
        return _decoded_as_others(scored, settings)
    except Exception:
        logger.info("the run could not be decoded as other tools do", exc_info=True)
        return None


def _decoded_as_others(scored: _Scored, settings: ParitySettings) -> float | None:
    recognizer = settings.open_scored()
    if recognizer.opened.loaded.merging.parts or needs_baking(recognizer.opened.loaded):
        return None
    asked: DecodingSettings = settings.decoding.get("decoding", DecodingSettings())
    plain = replace(asked, temperatures=(0.0,), logprob_threshold=None, compression_ratio_threshold=None)
    decoding = {**settings.decoding, "decoding": plain}
    if recognizer.opened.loaded.trained_contexts:
        decoding["context"] = "full"
    result = recognizer.evaluate(scored.clips, **decoding)
    score = result.scores[deciding(result.scores)] if result.scores else None
    gc.collect()
    return None if score is None else score.value


class _Recordings(Sequence[NDArray[np.float32]]):
    """Waveforms of clips, each decoded when it is asked for."""

    def __init__(self, clips: Sequence[Clip], rate_hz: int) -> None:
        self._clips, self._rate_hz = clips, rate_hz

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: Any) -> Any:
        clip = self._clips[index]
        return read(
            clip.path,
            start_s=clip.start_s,
            duration_s=clip.duration_s,
            channel=clip.channel,
            sample_rate_hz=self._rate_hz,
        )


def _scored(settings: ParitySettings) -> _Scored:
    """Recognise the clips as the run is scored; the model is gone when this returns.

    Raises:
        SonotuneError: There are no clips, or the run cannot be opened.
    """
    recognizer = settings.open_scored()
    loaded, task = recognizer.opened.loaded, recognizer.task
    clips, left_out = clips_to_compare(settings, task, loaded.frontend.max_duration_s)
    result = recognizer.evaluate(clips, **settings.decoding)
    unread = {clip_id for finding in result.findings if finding.severity == "error" for clip_id in finding.clip_ids}
    kept = [index for index, clip in enumerate(clips) if clip.id not in unread]
    if not kept:
        raise ManifestError("no development clip could be read")
    languages = getattr(getattr(loaded.module, "generation_config", None), "lang_to_id", None) or {}
    return _Scored(
        task=task,
        clips=[clips[index] for index in kept],
        predictions=[result.predictions[index] for index in kept],
        context=loaded.context,
        rate_hz=loaded.frontend.sample_rate_hz,
        known_languages=tuple(token.strip("<|>") for token in languages),
        multi_label=task.name == "classify" and task.reference is None,
        left_out=left_out + len(unread),
    )


def clips_to_compare(settings: ParitySettings, task: Task, window_s: float | None) -> tuple[list[Clip], int]:
    """Development clips that the model hears whole, drawn by the seed; and how many were too long.

    Raises:
        ManifestError: There are none.
    """
    if not settings.sources:
        raise ManifestError(
            "no development clips are known: this is no run with data of its own. Name some with --parity MANIFEST."
        )
    corpus = load_corpus(dict(settings.sources), seed=settings.seed, require=task.reference, **settings.corpus)
    clips = corpus.splits[settings.split]
    longest_s = min(window_s or LONGEST_S, LONGEST_S)
    fitting = [clip for clip in clips if clip.duration_s <= longest_s]
    too_long = len(clips) - len(fitting)
    if not fitting:
        raise ManifestError(f"all {len(clips)} development clips are longer than {longest_s:g} s")
    if len(fitting) > settings.clips:
        drawn = generator(settings.seed, "parity").choice(len(fitting), size=settings.clips, replace=False)
        fitting = [fitting[index] for index in sorted(drawn.tolist())]
    return fitting, too_long


def _adapter(folder: Path) -> SavedModel:
    """Where plain PEFT finds an adapter and its base."""
    metadata = read_metadata(folder)
    base = base_of(folder, metadata)
    outputs = tuple(metadata.get("outputs", ()))
    if is_asset(base):
        return SavedModel(folder=folder, base=str(resolve_asset(base)), outputs=outputs)
    revision = None if is_folder(base) else metadata.get("revision")
    return SavedModel(folder=folder, base=base, revision=revision, outputs=outputs)


# --- side by side ------------------------------------------------------------------------------------


def _compared(scored: _Scored, served: Served, settings: ParitySettings) -> dict[str, Any]:
    """The part of `parity.json` that needs both.

    Raises:
        SonotuneError: The clips have no words.
    """
    task, clips = scored.task, scored.clips
    texts = served.texts or [None] * len(clips)
    scores: Sequence[Mapping[str, float]] = served.scores or [{}] * len(clips)
    predictions = [
        Prediction(clip_id=clip.id, text=None if text is None else text.strip(), scores=row)
        for clip, text, row in zip(clips, texts, scores, strict=True)
    ]
    rows = [
        (task.row(one, clip), task.row(other, clip))
        for one, other, clip in zip(scored.predictions, predictions, clips, strict=True)
    ]
    resamples = 1000
    first, second = (
        {name: score.to_json() for name, score in task.score(side, clips, resamples=resamples).items()}
        for side in (scored.predictions, predictions)
    )
    difference = _difference(task, scored, predictions, first, second, settings.seed)
    main = next(iter(difference.values()))
    same = [_decided(one) == _decided(other) for one, other in rows]
    return {
        "equal": float(np.mean(same)),
        "equal_raw": float(np.mean([_written(one) == _written(other) for one, other in rows])),
        "difference": difference,
        "scored": first,
        "served": second,
        "passed": bool(abs(main["value"]) <= TOLERANCE + 1e-9),
        "differing": [
            {"id": clip.id, "reference": _reference(one), "scored": _written(one), "served": _written(other)}
            for clip, (one, other), equal in zip(clips, rows, same, strict=True)
            if not equal
        ][:_SHOWN],
    }


def _difference(
    task: Task,
    scored: _Scored,
    predictions: Sequence[Prediction],
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Served minus scored, the score that decides first; without an interval where the clips are too few for one."""
    primary = primary_score(first)
    if primary is not None and len(scored.clips) < MIN_BLOCKS:
        name = "accuracy" if "accuracy" in first else primary  # as `compare` counts
        value = second[name]["value"] - first[name]["value"]
        counted = {"count": len(scored.clips), "unit": "fraction", "p": None}
        return {name: {"value": value, "low": None, "high": None, **counted}}
    with tempfile.TemporaryDirectory() as place:
        files = [Path(place) / f"{name}.jsonl" for name in ("scored", "served")]
        for file, side in zip(files, (scored.predictions, predictions), strict=True):
            write_predictions(file, task, side, scored.clips)
        found = compare([files[0]], [files[1]], primary=primary, slices=False, seed=seed)
    return {name: difference.to_json() for name, difference in found.differences.items()}


def _decided(row: Mapping[str, Any]) -> Any:
    """What is compared: the text in scoring form, or the classes."""
    return set(row["decided"]) if "decided" in row else row["scored_hypothesis"]


def _written(row: Mapping[str, Any]) -> Any:
    return list(row["decided"]) if "decided" in row else row["hypothesis"]


def _reference(row: Mapping[str, Any]) -> Any:
    return row["labels"] if "labels" in row else row["reference"]


# --- what is told ------------------------------------------------------------------------------------


def finding_of(parity: Mapping[str, Any]) -> Finding:
    """What a person reads of it: a warning where nothing was compared or the two differ, else a note."""
    if parity["equal"] is None:
        message = f"parity of the export was not checked: {parity['reason']}"
        return Finding(check=CHECK, severity="warning", message=message if message.endswith(".") else message + ".")
    name, main = next(iter(parity["difference"].items()))
    message = parity["sentence"]
    if parity["verdict"] == "differs":
        low, high = main["low"], main["high"]
        surely = low is not None and not low <= 0 <= high
        advice = _remedy(parity, name) if surely else "Compare more clips with --parity-clips or --parity MANIFEST."
        message += f" {_causes(parity, name)}{advice} parity.json lists the clips that differ."
    return Finding(
        check=CHECK,
        severity="warning" if parity["verdict"] == "differs" else "note",
        message=message,
        measured=round(100 * main["value"], 2),
        limit=100 * parity["tolerance"],
        unit="points",
    )


def fails_strict(parity: Mapping[str, Any]) -> bool:
    """Whether `--strict` refuses: nothing was compared, or the difference is more than the tolerance.

    Parity that the clips do not show is not refused: the sentence says how many would, and the clips may be all there
    are.
    """
    return parity["verdict"] in (None, "differs")


def _causes(parity: Mapping[str, Any], name: str) -> str:
    """How much of the difference is how the run was decoded, and how much the weights and the tool."""
    whole = parity.get("as_others_decode")
    if whole is None:
        return ""
    scored, served = (parity[side][name]["value"] for side in ("scored", "served"))
    return (
        f"{100 * (whole - scored):+.1f} points are between the run as it is scored and the run over the whole window "
        f"without fallback; {100 * (served - whole):+.1f} are the rounded weights and the other tool. "
    )


def _remedy(parity: Mapping[str, Any], name: str) -> str:
    whole, scored = parity.get("as_others_decode"), parity["scored"][name]["value"]
    if parity["context"] == "cut":
        return "Serve it with sonotune, or train and score with model.context=thinned, which others serve alike."
    if whole is not None and abs(whole - scored) > parity["tolerance"] and parity["context"] == "thinned":
        return (
            "Train and score with model.context=full, give some batches the whole window (model.full_context_share), "
            "or serve it with sonotune."
        )
    return "Export it with --dtype fp32, or serve it with sonotune."


def with_finding(findings: Sequence[Finding], found: Finding) -> tuple[Finding, ...]:
    """The findings of a record with this one in the place of an earlier export's."""
    return (*(finding for finding in findings if finding.check != CHECK), replace(found))
