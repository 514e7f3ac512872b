"""What tuning broke, of a model that is there already: asked with and without what it learned.

The base of an adapter is the model with the adapter off. The base of a fully tuned run is the checkpoint in its record,
which is loaded beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from sonotune.adapters.kinds.base import kind_of
from sonotune.adapters.scale import at_scale
from sonotune.errors import ConfigError
from sonotune.evaluation.evaluate import EvaluationResult, predict_clips
from sonotune.evaluation.retention.measure import measure
from sonotune.evaluation.retention.run import RetentionSettings, compare_all, measure_base
from sonotune.evaluation.retention.scales import scale_curve
from sonotune.features.workers import Crew
from sonotune.metrics.retention import retention_findings
from sonotune.metrics.scores import primary_score
from sonotune.serving.recognizer import Recognizer
from sonotune.types import Clip

_PREDICT_SETTINGS = ("batch_seconds", "max_clips", "decoding")


def evaluate_and_retain(
    recognizer: Recognizer,
    clips: Sequence[Clip],
    settings: RetentionSettings,
    *,
    scoring: Mapping[str, Any],
    open_base: Callable[[], Recognizer] | None,
    crew: Crew | None = None,
) -> EvaluationResult:
    """Evaluate clips, and tell what tuning broke, and scores over the strength of what was learned, where asked.

    Args:
        recognizer: The tuned model.
        clips: What is scored.
        settings: What is kept, and how it is asked.
        scoring: Arguments of `Recognizer.evaluate` for `clips`.
        open_base: Opens the base of a model without an adapter; None where it is not known.
        crew: Loader processes.

    Raises:
        ConfigError: The base model is not known, or a panel cannot be asked of this model.
        AdapterError: What was learned cannot be scaled.
        ManifestError: The source of a panel cannot be read.
    """
    if not settings.keep and not settings.scales:
        return recognizer.evaluate(clips, crew=crew, **scoring)
    task, loaded = recognizer.task, recognizer.opened.loaded
    base = _base_of(recognizer, open_base)
    predict = partial(
        predict_clips,
        crew=crew,
        autocast=recognizer.autocast,
        **{name: scoring[name] for name in _PREDICT_SETTINGS if name in scoring},
    )
    with settings.panels(task, loaded) as (panels, findings):  # what is wrong with them is told before the work
        result = recognizer.evaluate(clips, crew=crew, **scoring)
        off = nullcontext() if base is not None else kind_of(loaded).disabled(loaded)
        with off:
            before = measure_base(panels, task, loaded if base is None else base.opened.loaded, settings, predict)
        after = {panel.name: measure(panel, task, loaded, predict, where="tuned model") for panel in panels}
        found = compare_all(panels, before, after, settings, findings)
        curve: dict[str, Any] = {}
        if settings.scales:
            scores = {1.0: result.to_json()["scores"]}
            weights = None if base is None else base.opened.loaded.module.state_dict()
            curve = scale_curve(
                settings.scales,
                at=partial(at_scale, loaded, base=weights),
                score=lambda _: recognizer.evaluate(clips, crew=crew, **scoring).to_json()["scores"],
                primary=primary_score(scores[1.0]) or "",
                panels=panels,
                measure=lambda panel, scale: measure(panel, task, loaded, predict, where=f"scale {scale:g}"),
                known={0.0: before, 1.0: after},
                scored=scores,
                resamples=settings.resamples,
                seed=settings.seed,
            )
    told = [*result.findings, *found.findings, *retention_findings(found.rows)]
    return replace(result, retention=found.rows, adapter_scales=curve, findings=told)


def _base_of(recognizer: Recognizer, open_base: Callable[[], Recognizer] | None) -> Recognizer | None:
    """The base model where it is another than the tuned one with its adapter off."""
    if recognizer.opened.loaded.adapter is not None:
        return None
    if open_base is None:
        raise ConfigError(
            f"evaluation.keep and evaluation.adapter_scales compare with the base model, and nothing says which one "
            f"{recognizer.opened.loaded.checkpoint} was tuned from. Give the run or the adapter instead of an "
            "export or a checkpoint."
        )
    return open_base()
