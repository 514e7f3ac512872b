"""Evaluations of a run: before, while and after it trains, and the entropy of activations at the same points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

from sonotune.adapters.calibration.calibrate import collect
from sonotune.adapters.ranks.choose import calibration_clips
from sonotune.evaluation.augmented import EvaluationChain
from sonotune.evaluation.confidence import WordConfidence, calibration_in, kept_curves, settings_of, with_curves
from sonotune.evaluation.evaluate import EvaluationResult, evaluate, write_predictions
from sonotune.evaluation.noise import with_noise
from sonotune.metrics.confidence import Calibration
from sonotune.metrics.scores import WORSE, primary_score, score_title, show_score, show_value, spelling_of_numbers
from sonotune.progress import about, note
from sonotune.runs import read_events
from sonotune.training.adaptation import rank_settings
from sonotune.training.inputs import RunInputs
from sonotune.training.logging.trackers import Trackers
from sonotune.training.model import PreparedModel
from sonotune.training.session import Session
from sonotune.training.sharding import unsharded
from sonotune.training.state import TrainingState
from sonotune.types import Clip, Finding, Score, Severity

EvaluationPoint = Literal["before", "after", "test"]
IMPROVING: Final = "training.still_improving"
RESPELT: Final = "training.numbers_respelt"
LEAST_GAIN: Final = 0.03
"""Share of the best earlier score by which the last one must be better: less is within the noise of most sets."""


class Scoring:
    """Scores the clips of a run with its model as it is at the time.

    Args:
        session: The run.
        inputs: Its clips and task.
        model: Changes in place while it trains.
        trackers: Hear of the scores.
    """

    def __init__(self, session: Session, inputs: RunInputs, model: PreparedModel, trackers: Trackers) -> None:
        self.model = model
        self._session, self._inputs, self._trackers = session, inputs, trackers
        self._split_clips: dict[str, list[Clip]] = {}

    @property
    def has_development_clips(self) -> bool:
        """Whether there are clips to score while it trains."""
        return bool(self._inputs.corpus.splits.get("eval"))

    def score(self, point: EvaluationPoint, *, once: bool = False) -> None:
        """Score the development clips, or those of the test, and keep scores and predictions.

        Args:
            point: Of the run.
            once: Leave the scores of an earlier session alone.
        """
        log, task = self._session.log, self._inputs.task
        split = "test" if point == "test" else "eval"
        clips = self._clips(split)
        if not clips or (once and point in log.record.scores):
            return
        calibration = calibration_in(log.record.confidence) if point == "test" else None
        result = self._evaluate(split, f"{'before' if point == 'before' else 'after'} training", calibration)
        if self._session.compute.processes.main:
            write_predictions(log.directory.predictions_dir / f"{point}.jsonl", task, result.predictions, clips)
        log.finding([replace(found, message=f"{point}: {found.message}") for found in result.findings])
        log.scored(point, result.scores)
        self._keep_confidence(point, result, clips)
        self._trackers.scored(point, result.scores)
        if point == "after":
            log.finding(worse_than_before(log.record.scores))
            log.finding(numbers_respelt(log.record.scores))
            most = self._session.config.training.max_steps
            log.finding(still_improving(read_events(log.directory.events_path), max_steps=most))

    def start_was_best(self, state: TrainingState) -> None:
        """Say that no evaluation while training was better than the one before it, whose weights are kept."""
        log = self._session.log
        before = log.record.scores["before"][state.primary]
        reached = next(
            event["scores"][state.primary]
            for event in read_events(log.directory.events_path)
            if event["kind"] == "evaluation" and event["step"] == state.best_step
        )
        message = (
            f"training made the model no better: {score_title(state.primary, before)} on the development clips was "
            f"{show_score(before)} before it and {show_score(reached)} at best, after step {state.best_step}. The "
            "weights from before training are kept, so that the adapter changes nothing. Lower training.learning_rate, "
            "or look at the training transcripts."
        )
        log.finding([_finding(WORSE, "warning", message, reached, before)])

    def development_scores(self, step: int) -> Mapping[str, Score]:
        """Scores of the development clips, for choosing the best weights."""
        self.measure_entropy("during", step)
        return self._evaluate("eval", f"at step {step:,}").scores

    def score_now(self, when: str) -> Mapping[str, Score]:
        """Scores of the development clips by the model as it is, for a message that says when."""
        return self._evaluate("eval", when).scores

    def measure_entropy(self, point: str, step: int) -> None:
        """Log the entropy of activations, where that is asked for."""
        session, inputs, loaded = self._session, self._inputs, self.model.loaded
        settings = replace(rank_settings(session.config), clips=session.config.evaluation.entropy_clips)
        if not settings.clips or not self.model.targets:
            return
        with unsharded(loaded.module):
            found = collect(
                loaded,
                inputs.calibration_objective,
                calibration_clips(inputs.prepared.clips, settings),
                tokens=settings.tokens,
                seed=settings.seed,
                autocast=session.compute.accelerator.autocast,
                names=self.model.targets,
                processes=session.compute.processes,
            )
        session.log.event(
            "activation_entropy",
            step=step,
            moment=point,
            effective_rank=found.effective_ranks(),
            **{kind: found.effective_ranks(kind) for kind in ("audio", "text")},
            seconds=found.seconds,
        )

    def _keep_confidence(self, point: EvaluationPoint, result: EvaluationResult, clips: Sequence[Clip]) -> None:
        """Keep the curves of word confidences, and calibrate them on the development clips of the finished model."""
        log, decoding = self._session.log, self._session.config.evaluation.decoding()
        if not decoding.confidence:
            return
        kept = log.record.confidence
        if "confidence" in result.details:
            kept = with_curves(kept, point, kept_curves(result.details["confidence"], result.slices))
        if point == "after":
            used = settings_of(self.model.loaded, decoding)
            fitted, findings = WordConfidence(self._inputs.task, None, used).fit(result.predictions, clips)
            log.finding(findings)
            kept = {**kept, **({} if fitted is None else {"calibration": fitted.to_json()})}
        log.write(confidence=kept)

    def _clips(self, split: str) -> list[Clip]:
        """The clips of a split, with their noise where scores by it are asked for; measured once."""
        if split not in self._split_clips:
            clips = self._inputs.corpus.splits.get(split) or []
            self._split_clips[split] = with_noise(clips, self._session.config.evaluation.snr_edges_db)
        return self._split_clips[split]

    def _evaluate(self, split: str, when: str, calibration: Calibration | None = None) -> EvaluationResult:
        """Score the clips of a split, and say what the score is."""
        session, settings = self._session, self._session.config.evaluation
        clips = f"{'test' if split == 'test' else 'development'} clips"
        keep = getattr(self._inputs.task, "keep_scores", None)
        if keep is not None:  # so that the moments of a run can be compared
            keep({name for scores in session.log.record.scores.values() for name in scores})
        with unsharded(self.model.loaded.module), about(clips if split == "test" else when):
            result = evaluate(
                self._inputs.task,
                self.model.loaded,
                self._clips(split),
                batch_seconds=settings.batch_seconds,
                max_clips=settings.batch_max_clips,
                decoding=settings.decoding(),
                bootstrap=settings.bootstrap,
                duration_edges_s=settings.duration_edges_s,
                crew=session.evaluation_crew,
                autocast=session.compute.accelerator.autocast,
                processes=session.compute.processes,
                primary=self._inputs.primary,
                augmentation=EvaluationChain.of(settings.augment, settings.augment_seed),
                calibration=calibration,
            )
        scores = {name: score.to_json() for name, score in result.scores.items()}
        if (name := primary_score(scores)) is not None:
            score = scores[name]
            shown = f"{score_title(name, score)} {show_value(score)}"
            note(f"{when.removeprefix('at ')}: {shown} on {score['count']:,} {clips}")
        return result


def worse_than_before(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Finding]:
    """A warning where the score that chooses the weights is worse after training than it was before.

    Args:
        scores: Evaluation point -> name -> score, as in `run.json`.
    """
    before, after = scores.get("before", {}), scores.get("after", {})
    name = next((name for name, score in after.items() if score.get("role") == "primary"), None)
    if name is None or name not in before:
        return []
    was, now = before[name], after[name]
    change = now["value"] - was["value"]
    if change == 0 or (change > 0) == (now["better"] == "higher"):
        return []
    message = (
        f"training made the model worse on the development clips: {score_title(name, now)} was {show_score(was)} and "
        f"is {show_score(now)}. Lower training.learning_rate, train shorter, or look at the training transcripts."
    )
    return [_finding(WORSE, "warning", message, now, was)]


def numbers_respelt(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Finding]:
    """A note where some of the change of the word error rate is the spelling of numbers.

    Args:
        scores: Evaluation point -> name -> score, as in `run.json`.
    """
    told = spelling_of_numbers(scores.get("before", {}), scores.get("after", {}))
    return [] if told is None else [Finding(check=RESPELT, severity="note", message=told)]


def still_improving(events: Iterable[Mapping[str, Any]], *, max_steps: int | None = None) -> list[Finding]:
    """A note where the last score of the development clips is the best by far, so that longer training may pay.

    Args:
        events: Of the run's log; of two evaluations after one step the later counts.
        max_steps: `training.max_steps`, which ended the run where it got so far.
    """
    at_step = {event["step"]: event["scores"] for event in events if event["kind"] == "evaluation"}
    found = [at_step[step] for step in sorted(at_step)]
    name = primary_score(found[-1]) if found else None
    if name is None or len(found) < 2:
        return []
    *earlier, last = [scores[name] for scores in found if name in scores]
    sign = 1 if last["better"] == "higher" else -1
    best = max(earlier, key=lambda score: sign * score["value"], default=last)
    gain = sign * (last["value"] - best["value"])
    if gain <= 0 or gain < LEAST_GAIN * abs(best["value"]):
        return []
    limit = "training.max_steps" if max_steps is not None and max(at_step) >= max_steps else "training.max_epochs"
    message = (
        f"{score_title(name, last)} on the development clips was still getting better when training ended: "
        f"{show_score(best)} at best before the last evaluation, and {show_score(last)} there. Train longer: raise "
        f"{limit}; with run.allow_change=[{limit}] the run goes on from here."
    )
    return [_finding(IMPROVING, "note", message, last, best)]


def _finding(
    check: str, severity: Severity, message: str, score: Mapping[str, Any], other: Mapping[str, Any]
) -> Finding:
    """About one score beside another of the same name."""
    scale, unit = (100.0, "%") if score["unit"] == "fraction" else (1.0, score["unit"])
    measured, limit = (round(scale * one["value"], 2) for one in (score, other))
    return Finding(check=check, severity=severity, message=message, measured=measured, limit=limit, unit=unit)
