"""Use several models together: each decodes, then their predictions are combined and held against the best of them.

Members are opened one after the other, so the memory is that of the largest. The comparison is with the member that is
best on the same clips, which flatters that member: what is shown against it holds.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from sonotune.errors import ConfigError
from sonotune.evaluation.combination import CombinationSettings, combine_predictions
from sonotune.evaluation.compare import compare
from sonotune.evaluation.evaluate import EvaluationResult, write_predictions
from sonotune.evaluation.scoring import score_predictions
from sonotune.loading import choose_family, find_adapter, model_folder
from sonotune.metrics.efficiency import real_time_factor
from sonotune.metrics.intervals import MIN_BLOCKS
from sonotune.metrics.scores import better_sign, change_of, primary_score
from sonotune.models.weight_files import weights_digest
from sonotune.progress import about
from sonotune.registry import is_asset, resolve_asset
from sonotune.serving.recognizer import Recognizer
from sonotune.tasks.base import Task
from sonotune.types import Clip, Finding

Verdict = Literal["gain", "no gain was shown", "worse"]
_VERDICTS: Mapping[str, Verdict] = {"better": "gain", "none": "no gain was shown", "worse": "worse"}
TWICE = "ensemble.twice"
"""The finding of members with the same weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A model of an ensemble.

    Attributes:
        name: As it was named: a run, an adapter, a model folder or a hub name.
        checkpoint: What that stands for.
        task: Registry name of what it is asked for; `auto` takes what it was made for.
        family: Registry name of the architecture, or `auto`.
        revision: Of a hub model.
        open: Opens it.
    """

    name: str
    checkpoint: str
    open: Callable[[], Recognizer]
    task: str = "auto"
    family: str = "auto"
    revision: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleResult:
    """What an ensemble and its members did on the same clips.

    Attributes:
        combined: Of the ensemble; its seconds are those of all members, and of combining.
        names: Of the members.
        members: Of each member.
        best: Place of the member with the best score that decides; without scores that of the first.
        difference: Ensemble minus best member in the score that decides, in JSON form; None without scores, or where
            too few clips have a reference.
        verdict: What that says; None without a difference.
    """

    combined: EvaluationResult
    names: tuple[str, ...]
    members: tuple[EvaluationResult, ...]
    best: int
    difference: Mapping[str, Any] | None
    verdict: Verdict | None

    @property
    def cost_factor(self) -> float:
        """Seconds of the ensemble over those of the best member (of the first, without scores)."""
        return self.combined.seconds / max(self.members[self.best].seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """The key `ensemble` of `evaluate --json` and of `transcribe --json`."""
        return {
            "members": [
                {
                    "model": name,
                    "scores": {score: one.to_json() for score, one in found.scores.items()},
                    "seconds": found.seconds,
                }
                for name, found in zip(self.names, self.members, strict=True)
            ],
            "best": self.names[self.best] if self.combined.scores else None,
            "cost_factor": self.cost_factor,
            "difference": self.difference,
            "verdict": self.verdict,
        }


def check_members(members: Sequence[Member], settings: CombinationSettings) -> list[Finding]:
    """Refuse members that cannot be combined, before one of them is opened.

    Returns:
        A warning where two members have the same weights, which then have two votes.

    Raises:
        ConfigError: There are too few, or they do different tasks.
        ModelError: A member is not there, or its family does another task.
    """
    tasks = [
        choose_family(one.checkpoint, revision=one.revision, family=one.family, task=one.task).task for one in members
    ]
    if len(set(tasks)) > 1:
        other = next(place for place, task in enumerate(tasks) if task != tasks[0])
        raise ConfigError(
            f"the members of an ensemble do the same task; {members[0].name} can {tasks[0]}, and {members[other].name} "
            f"can {tasks[other]}. Leave one of them out."
        )
    settings.check_members(len(members), texts=tasks[0] == "transcribe")
    seen: dict[str, str] = {}
    findings = []
    for one in members:
        weights = _weights_of(one)
        if weights in seen:
            same = f"{one.name} stands twice" if seen[weights] == one.name else f"{one.name} is {seen[weights]} again"
            message = f"{same} among the members: the same weights have two votes, and are decoded twice."
            findings.append(Finding(check=TWICE, severity="warning", message=message))
        seen.setdefault(weights, one.name)
    return findings


def _weights_of(member: Member) -> str:
    """What tells one model from another: the digest of its weights where they are here, else its name."""
    if is_asset(member.checkpoint):
        return weights_digest(resolve_asset(member.checkpoint))
    folder = find_adapter(member.checkpoint) or Path(model_folder(member.checkpoint))
    return weights_digest(folder) if folder.is_dir() else f"{member.checkpoint}@{member.revision}"


def run_members(
    members: Sequence[Member], use: Callable[[int, Recognizer], EvaluationResult]
) -> tuple[Task, list[EvaluationResult]]:
    """Open one member after the other and use it.

    Args:
        members: Checked by `check_members`.
        use: Place and opened member -> what it did; the same clips each time.

    Returns:
        The task of the first member, by which the ensemble is scored, and what each member did.
    """
    tasks, results = [], []
    for place, member in enumerate(members):
        recognizer = member.open()
        with about(f"{member.name}, {place + 1} of {len(members)}"):
            results.append(use(place, recognizer))
        tasks.append(recognizer.task)
        del recognizer
        if place + 1 < len(members):
            gc.collect()  # the next model may not fit beside it
    return tasks[0], results


def combine_results(
    names: Sequence[str],
    task: Task,
    results: Sequence[EvaluationResult],
    scoring: Callable[[str], str],
    settings: CombinationSettings,
    *,
    clips: Sequence[Clip] = (),
    bootstrap: int = 1000,
    seed: int = 0,
    duration_edges_s: Sequence[float] = (),
) -> EnsembleResult:
    """Combine what members did, and score it where clips are given.

    Args:
        names: Of the members.
        task: Scores the ensemble.
        results: Of the members, on the same clips.
        scoring: The form in which texts are compared.
        settings: How predictions are combined.
        clips: What the members were scored on; empty scores nothing.
        bootstrap: Resamples for the intervals.
        seed: Seed of the resampling.
        duration_edges_s: Borders of the duration slices, in seconds.

    Raises:
        ConfigError: Members know other classes, or words bring no confidences to vote with.
    """
    started_at = time.monotonic()
    predictions = combine_predictions([one.predictions for one in results], scoring, settings)
    first = results[0]
    findings = _findings(names, results)
    combined = replace(
        first,
        predictions=predictions,
        scores={},
        slices=[],
        details={},
        findings=findings,
        context=None,
    )
    if clips:
        titled = dict if first.augmentation is None else first.augmentation.titled
        found = score_predictions(
            task,
            predictions,
            clips,
            bootstrap=bootstrap,
            seed=seed,
            duration_edges_s=duration_edges_s,
            titled=titled,
        )
        combined = replace(
            combined,
            scores=found.scores,
            slices=found.slices,
            details=found.details,
            findings=[*combined.findings, *found.findings],
        )
    seconds = math.fsum(one.seconds for one in results) + time.monotonic() - started_at
    rate = real_time_factor(seconds, combined.audio_seconds)
    combined = replace(combined, seconds=seconds, real_time_factor=rate)
    best = _best(results)
    difference = _difference(task, results[best], combined, clips, bootstrap=bootstrap, seed=seed)
    return EnsembleResult(
        combined=combined,
        names=tuple(names),
        members=tuple(results),
        best=best,
        difference=difference,
        verdict=None if difference is None else _VERDICTS[change_of(difference)],
    )


def _findings(names: Sequence[str], results: Sequence[EvaluationResult]) -> list[Finding]:
    """What was found of each member, with its name before it; what holds for all is told once."""
    told = [{finding.message for finding in one.findings} for one in results]
    shared = set.intersection(*told)
    findings = [finding for finding in results[0].findings if finding.message in shared]
    for name, one in zip(names, results, strict=True):
        findings += [
            replace(finding, message=f"{name}: {finding.message}")
            for finding in one.findings
            if finding.message not in shared
        ]
    return findings


def _best(results: Sequence[EvaluationResult]) -> int:
    """Place of the member with the best score that decides, of equals the first."""
    name = _decides(results[0])
    if name is None:
        return 0
    sign = better_sign(results[0].scores[name].better)
    return min(range(len(results)), key=lambda place: (sign * results[place].scores[name].value, place))


def _decides(result: EvaluationResult) -> str | None:
    return primary_score({name: score.to_json() for name, score in result.scores.items()})


def _difference(
    task: Task,
    best: EvaluationResult,
    combined: EvaluationResult,
    clips: Sequence[Clip],
    *,
    bootstrap: int,
    seed: int,
) -> dict[str, Any] | None:
    """Ensemble minus best member, paired by clip, as `sonotune compare` gives it."""
    scored = sum(task.has_reference(clip) for clip in clips)
    decides = _decides(combined)
    if scored < MIN_BLOCKS or decides is None:
        return None
    with TemporaryDirectory(prefix="sonotune-ensemble-") as folder:
        files = [Path(folder) / name for name in ("best.jsonl", "ensemble.jsonl")]
        for file, result in zip(files, (best, combined), strict=True):
            write_predictions(file, task, result.predictions, clips)
        texts = task.reference == "text"
        found = compare(
            files[:1],
            files[1:],
            primary=decides if texts else None,  # of classes there is accuracy alone
            resamples=max(bootstrap, 1000),
            seed=seed,
            slices=False,
        )
    return {"score": found.primary.name, **found.primary.to_json()}
