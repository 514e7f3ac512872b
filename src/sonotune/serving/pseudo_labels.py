"""Texts of a model in the place of transcripts: a manifest that any other model learns from (sequence distillation).

What the model writes is kept beside the new manifest (`OUT.labels.jsonl`), some clips at a time: a run that was stopped
goes on there, and another threshold costs nothing. The file names the model by its digest; what another model wrote is
refused. Texts are judged without references: by the probability that the model gives them, by how repetitive and how
fast they are, and by whether anybody speaks. A transcript that the source has stays as `given_text`.

Source: Kim and Rush 2016, "Sequence-Level Knowledge Distillation"; thresholds of the mean log-probability and of the
compression ratio by Radford et al. 2022, section 4.5.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, NotRequired, cast

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sonotune.audit.measure import file_state, sound_of
from sonotune.audit.repair_manifest import Repaired, RepairRequest, beside, check_output
from sonotune.data.manifest import TEACHER_COLUMN, manifest_text
from sonotune.data.text import BASIC
from sonotune.errors import ConfigError, ManifestError
from sonotune.evaluation.evaluate import predict_clips
from sonotune.json_files import Number, read_json_lines
from sonotune.loading import choose_family, model_digest
from sonotune.metrics.runaway import compression_ratio, loops
from sonotune.models.base import SpeechFamily
from sonotune.models.decoding import CHARACTERS_PER_SECOND
from sonotune.progress import note, phase
from sonotune.runs import atomic_write_text
from sonotune.runs.files import append_bytes, atomic_write_bytes, digest_json
from sonotune.serving.recognizer import Recognizer
from sonotune.types import DEFAULT_DECODING, Clip, DecodingSettings, Finding, Prediction
from sonotune.wording import counted

LOGPROB_COLUMN, GIVEN_COLUMN, REASONS_COLUMN = "label_logprob", "given_text", "label_reasons"
_UNIT: Final = 64  # clips whose texts are written at once
_AGAIN: Final = "Remove it to have all clips labelled again, or name another OUT."


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelLimits:
    """Which texts are left out; `None` asks nothing.

    Attributes:
        min_logprob: Least mean log-probability of the tokens.
        max_compression: Highest compression ratio; texts that loop are left out by it too.
        max_characters_per_second: Most letters, marks and digits a second of speech.
    """

    min_logprob: float | None = DEFAULT_DECODING.logprob_threshold
    max_compression: float | None = DEFAULT_DECODING.compression_ratio_threshold
    max_characters_per_second: float | None = CHARACTERS_PER_SECOND


class _Row(TypedDict):
    """What the model wrote on one clip."""

    key: str
    text: str
    logprob: Number | None
    cut: bool
    finite: bool
    speech_s: Number | None


class _Line(TypedDict):
    """The first line of the file says what wrote it; each other has the clips of one unit."""

    teacher: NotRequired[dict[str, Any]]
    settings: NotRequired[dict[str, Any]]
    clips: NotRequired[list[_Row]]


_LINE: Final = TypeAdapter(_Line)


def label_manifest(
    request: RepairRequest,
    limits: LabelLimits | None = None,
    *,
    beam_size: int = 1,
    bits: Literal["auto"] | int = "auto",
    batch_seconds: float = 240.0,
) -> Repaired:
    """Let a model write the text of every clip, and write those that pass the limits as a manifest.

    Args:
        request: Source, manifest to write, the model, and the language of clips that name none.
        limits: Which texts are left out; None takes the defaults.
        beam_size: Beams; 1 is greedy.
        bits: Of the model's linear weights.
        batch_seconds: Padded seconds of one batch.

    Raises:
        ConfigError: The model classifies, or does not know a language of the clips.
        ManifestError: The source cannot be read or would be overwritten, the file of texts is another model's, or no
            text is left.
        ModelError: The model cannot be used.
        ResourceError: The disk is full.
    """
    kept, left = beside(request.out, "labels"), beside(request.out, "dropped")
    check_output(request.source, request.out, kept, left)
    clips, findings = request.read()
    teacher = _Teacher.open(request, beam_size=beam_size, bits=bits, batch_seconds=batch_seconds)
    teacher.check_languages(clips)
    texts = _Texts(kept, teacher)
    written = texts.of(clips)
    findings = [*findings, *texts.findings]
    judged = [
        (teacher.labelled(clip, row), reasons_against(clip, row, limits or LabelLimits()))
        for clip, row in zip(clips, written, strict=True)
    ]
    good = [clip for clip, reasons in judged if not reasons]
    bad = [replace(clip, extra={**clip.extra, REASONS_COLUMN: " ".join(why)}) for clip, why in judged if why]
    found = dict(Counter(why for _, reasons in judged for why in reasons).most_common())
    if not good:
        raise ManifestError(
            f"no text of {teacher.checkpoint} on {counted(len(clips), 'clip')} passes: "
            f"{', '.join(f'{why} {count}' for why, count in found.items())}. Look at {kept}; is it the language and "
            "the kind of speech that the model knows?"
        )
    atomic_write_text(left, manifest_text(left, bad))
    atomic_write_text(request.out, manifest_text(request.out, good))
    body = {
        "manifest": str(request.out),
        "clips": len(good),
        "dropped": len(bad),
        "dropped_manifest": str(left),
        "reasons": found,
        "hours": sum(clip.duration_s for clip in good) / 3600,
        "reused": texts.reused,
        "labels": str(kept),
        "teacher": teacher.to_json(),
    }
    return Repaired(body=body, findings=findings)


def reasons_against(clip: Clip, row: Mapping[str, Any], limits: LabelLimits) -> list[str]:
    """Why a text is not learned from; stable names, the gravest first.

    Args:
        clip: The clip.
        row: What the model wrote on it.
        limits: Which texts are left out.
    """
    if row["speech_s"] is None:
        return ["unreadable"]
    if not row["finite"]:
        return ["not_finite"]
    text, logprob, speech_s = row["text"], row["logprob"], row["speech_s"]
    found = [] if speech_s > 0 else ["no_speech"]
    if not text.strip():
        return [*found, "empty"]
    compression = limits.max_compression
    letters = sum(not character.isspace() for character in BASIC.scoring(text))
    rate = limits.max_characters_per_second
    for name, true in {
        "cut": row["cut"],
        "improbable": limits.min_logprob is not None and (logprob is None or logprob < limits.min_logprob),
        "repetitive": compression is not None and (compression_ratio(text) > compression or loops(text)),
        "too_fast": rate is not None and speech_s > 0 and letters > rate * speech_s,
    }.items():
        found += [name] if true else []
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Teacher:
    """The model that writes, and how.

    Attributes:
        recognizer: The model.
        checkpoint: What was named.
        digest: Of its weights and settings.
        language: Of clips that name none.
        decoding: How texts are written.
        batch_seconds: Padded seconds of one batch.
    """

    recognizer: Recognizer
    checkpoint: str
    digest: str
    language: str | None
    decoding: DecodingSettings
    batch_seconds: float

    @classmethod
    def open(
        cls, request: RepairRequest, *, beam_size: int, bits: Literal["auto"] | int, batch_seconds: float
    ) -> _Teacher:
        family = choose_family(request.model)
        if family.task != "transcribe":
            raise ConfigError(
                f"{request.model} can {family.task} (family {family.name}), and texts are written by a model that can "
                "transcribe. Name one with --model."
            )
        recognizer = Recognizer.open(request.model, language=request.language, bits=bits)
        return cls(
            recognizer=recognizer,
            checkpoint=request.model,
            digest=model_digest(request.model, recognizer.opened.loaded),
            language=request.language or recognizer.opened.settings.get("language"),
            decoding=replace(DEFAULT_DECODING, beam_size=beam_size, confidence=True),
            batch_seconds=batch_seconds,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What beside the weights decides a text."""
        return {
            "bits": self.recognizer.opened.choices["quantization.bits"].partition(":")[0],
            "precision": self.recognizer.precision,
            "context": self.recognizer.opened.loaded.context,
            "beam_size": self.decoding.beam_size,
        }

    def to_json(self) -> dict[str, Any]:
        return {"checkpoint": self.checkpoint, "digest": self.digest, **self.settings}

    def language_of(self, clip: Clip) -> str | None:
        return clip.language or self.language

    def check_languages(self, clips: Sequence[Clip]) -> None:
        loaded = self.recognizer.opened.loaded
        family = cast(SpeechFamily, loaded.family)
        for language in sorted({name for clip in clips if (name := self.language_of(clip))}):
            if not family.knows_language(loaded, language):
                count = sum(self.language_of(clip) == language for clip in clips)
                raise ConfigError(
                    f"{self.checkpoint} does not know the language {language!r}, which {counted(count, 'clip')} "
                    f"{'is' if count == 1 else 'are'} in: its texts would be of another. Name a model that does, or "
                    "leave these clips out."
                )

    def key(self, clip: Clip) -> str:
        """Of everything in a clip that decides its text; the audio by its path, size and time."""
        what = [clip.start_s, clip.duration_s, clip.channel, self.language_of(clip)]
        return digest_json([str(clip.path.resolve()), file_state(clip.path), *what])

    def write(self, clips: Sequence[Clip]) -> tuple[list[Prediction], list[Finding]]:
        recognizer = self.recognizer
        return predict_clips(
            recognizer.task,
            recognizer.opened.loaded,
            clips,
            batch_seconds=self.batch_seconds,
            decoding=self.decoding,
            autocast=recognizer.autocast,
        )

    def labelled(self, clip: Clip, row: _Row) -> Clip:
        """The clip with the text of the model, and where it is from."""
        extra = {**clip.extra, TEACHER_COLUMN: self.digest}
        if row["logprob"] is not None:
            extra[LOGPROB_COLUMN] = f"{row['logprob']:.4f}"
        if clip.text is not None:
            extra.setdefault(GIVEN_COLUMN, clip.text)
        return replace(clip, text=row["text"], words=(), language=self.language_of(clip), extra=extra)


class _Texts:
    """Texts of clips, each written once.

    Args:
        file: Where they are kept.
        teacher: Writes them.

    Raises:
        ManifestError: The file is damaged, or has texts of another model or of other settings.
    """

    def __init__(self, file: Path, teacher: _Teacher) -> None:
        self._file, self._teacher = file, teacher
        self._rows: dict[str, _Row] = {}
        self.findings: list[Finding] = []
        self.reused = 0  # clips whose text was there
        if not file.exists() or not self._read():
            first = {"teacher": {"checkpoint": teacher.checkpoint, "digest": teacher.digest}}
            atomic_write_bytes(file, _line({**first, "settings": teacher.settings}))

    def _read(self) -> bool:
        """Take over what is there, without a last line that a kill cut; whether there is a first line."""
        lines = list(read_json_lines(self._file, _LINE, error=ManifestError, do=_AGAIN, whole=True))
        if not lines:
            return False
        found, settings = lines[0].get("teacher", {}), lines[0].get("settings", {})
        if found.get("digest") != self._teacher.digest:
            raise ManifestError(
                f"{self._file} has texts of another teacher, {found.get('checkpoint', 'unnamed')} (digest "
                f"{str(found.get('digest', 'none'))[:12]}), and {self._teacher.checkpoint} has the digest "
                f"{self._teacher.digest[:12]}. {_AGAIN}"
            )
        if settings != self._teacher.settings:
            changed = [name for name, value in self._teacher.settings.items() if settings.get(name) != value]
            told = ", ".join(f"{name} {settings.get(name)}" for name in changed)
            raise ManifestError(f"{self._file} has texts that were written with other settings: {told}. {_AGAIN}")
        self._rows = {row["key"]: row for line in lines for row in line.get("clips", ())}
        if not self._file.read_bytes().endswith(b"\n"):
            atomic_write_bytes(self._file, b"".join(_line(cast(dict[str, Any], line)) for line in lines))
        return True

    def of(self, clips: Sequence[Clip]) -> list[_Row]:
        """The texts of clips, in their order; those that have none yet are written now, unit by unit.

        Which clips are in a unit depends on all of them, not on how often the work was stopped.
        """
        keys = [self._teacher.key(clip) for clip in clips]
        self.reused = sum(key in self._rows for key in keys)
        ordered = sorted(dict(zip(keys, clips, strict=True)).items(), key=lambda one: (one[1].duration_s, one[0]))
        units = [ordered[start : start + _UNIT] for start in range(0, len(ordered), _UNIT)]
        units = [[one for one in unit if one[0] not in self._rows] for unit in units]
        if reused := len(ordered) - sum(map(len, units)):
            note(f"{counted(reused, 'text')} of {len(ordered)} are there already ({self._file})")
        with phase("writing texts", len(ordered), "clips") as advance:
            done = reused
            for unit in filter(None, units):
                rows = self._written(unit)
                append_bytes(self._file, _line({"clips": rows}))
                self._rows |= {row["key"]: row for row in rows}
                done += len(unit)
                advance(done)
        return [self._rows[key] for key in keys]

    def _written(self, unit: Sequence[tuple[str, Clip]]) -> list[_Row]:
        # A copy of a clip may have its id in the manifest, and none here.
        clips = [replace(clip, id=key) for key, clip in unit]
        predictions, findings = self._teacher.write(clips)
        named = {key: clip.id for key, clip in unit}
        self.findings += [
            replace(finding, clip_ids=tuple(named[key] for key in finding.clip_ids)) for finding in findings
        ]
        return [_row(key, clip, found) for (key, clip), found in zip(unit, predictions, strict=True)]


def _row(key: str, clip: Clip, prediction: Prediction) -> _Row:
    logprobs = [one for word in prediction.words or () for one in word.logprobs]
    sound = sound_of(clip)
    return _Row(
        key=key,
        text=prediction.text or "",
        logprob=sum(logprobs) / len(logprobs) if logprobs else None,
        cut=prediction.cut,
        finite=prediction.finite,
        speech_s=None if sound is None else sum(end - start for start, end in sound.speech),
    )


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")
