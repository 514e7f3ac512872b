"""What a run broke: the panels of `evaluation.keep` before and after it, and over the strength of its adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sonotune.adapters.scale import at_scale
from sonotune.data.corpus import CORPUS_SETTINGS
from sonotune.data.text import get as get_normalizer
from sonotune.errors import ConfigError
from sonotune.evaluation.evaluate import predict_clips
from sonotune.evaluation.retention.base import Measured, Predict
from sonotune.evaluation.retention.measure import measure
from sonotune.evaluation.retention.run import RetentionSettings, compare_all, measure_base
from sonotune.evaluation.retention.scales import scale_curve
from sonotune.metrics.retention import retention_findings
from sonotune.training.inputs import RunInputs
from sonotune.training.model import PreparedModel
from sonotune.training.session import Session
from sonotune.training.sharding import unsharded
from sonotune.types import Score


class RunRetention:
    """Scores the panels of a run before and after it.

    Args:
        session: The run.
        inputs: Its task.

    Raises:
        ConfigError: Scales are asked of a run that cannot be scaled.
    """

    def __init__(self, session: Session, inputs: RunInputs) -> None:
        self._session, self._inputs = session, inputs
        self._before: dict[str, Measured] = {}
        if session.config.evaluation.adapter_scales and session.config.adapter.kind == "none":
            raise ConfigError(
                "evaluation.adapter_scales needs an adapter, and adapter.kind is none: the base model is gone when the "
                "run ends. Leave it out here; `sonotune evaluate model=RUN` loads the base again and interpolates."
            )

    @property
    def _settings(self) -> RetentionSettings:
        config = self._session.config
        asked = config.evaluation
        return RetentionSettings(
            keep=asked.keep,
            clips=asked.keep_clips,
            corpus=config.data.model_dump(include=CORPUS_SETTINGS),
            seed=config.training.seed,
            resamples=asked.bootstrap,
            decoding=asked.decoding(),
            precision=self._session.compute.precision,
            language=config.model.language or self._inputs.language,
            normalizer=get_normalizer(config.data.text_scoring).digest,
            scales=asked.adapter_scales,
            folder=self._session.log.directory.path,
        )

    @property
    def _predict(self) -> Predict:
        session, asked = self._session, self._session.config.evaluation
        return partial(
            predict_clips,
            batch_seconds=asked.batch_seconds,
            max_clips=asked.batch_max_clips,
            decoding=asked.decoding(),
            crew=session.evaluation_crew,
            autocast=session.compute.accelerator.autocast,
            processes=session.compute.processes,
        )

    def before(self, model: PreparedModel) -> None:
        """Ask the model that nothing was trained of yet; an earlier session of the run may have done so.

        Raises:
            ConfigError: A panel cannot be asked of this model.
            ManifestError: The source of a panel cannot be read.
        """
        settings, task, processes = self._settings, self._inputs.task, self._session.compute.processes
        if not settings.keep:
            return
        with settings.panels(task, model.loaded) as (panels, findings), unsharded(model.loaded.module):
            self._session.log.finding(findings)
            self._before = measure_base(
                panels,
                task,
                model.loaded,
                settings,
                self._predict,
                agree=processes.broadcast,
                write=processes.main,
            )

    def after(self, model: PreparedModel, score: Callable[[str], Mapping[str, Score]] | None) -> None:
        """Ask the trained model, and keep what changed in the record.

        Args:
            model: As it was saved.
            score: Scores the development clips, told when; None where there are none.
        """
        settings, log = self._settings, self._session.log
        task, loaded, predict = self._inputs.task, model.loaded, self._predict
        if not settings.keep and not settings.scales:
            return
        with settings.panels(task, loaded) as (panels, _), unsharded(loaded.module):
            after = {panel.name: measure(panel, task, loaded, predict, where="after training") for panel in panels}
            found = compare_all(panels, self._before, after, settings)
            log.write(retention=tuple(found.rows))
            log.finding(retention_findings(found.rows))
            if settings.scales and score is not None:
                curve = scale_curve(
                    settings.scales,
                    at=partial(at_scale, loaded),
                    score=lambda scale: _plain(score(f"at scale {scale:g}")),
                    primary=self._inputs.primary,
                    panels=panels,
                    measure=lambda panel, scale: measure(panel, task, loaded, predict, where=f"scale {scale:g}"),
                    known={0.0: self._before, 1.0: after},
                    scored={0.0: log.record.scores.get("before", {}), 1.0: log.record.scores.get("after", {})},
                    resamples=settings.resamples,
                    seed=settings.seed,
                )
                log.write(adapter_scales=curve)


def _plain(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {name: score.to_json() for name, score in scores.items()}
