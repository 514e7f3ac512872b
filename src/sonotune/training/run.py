"""A run, from its settings to its record; read downward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from sonotune.config.load import LoadedConfig
from sonotune.errors import RunDirectoryError
from sonotune.runs import torch_seed
from sonotune.stages import all_stages
from sonotune.training import checkpoint, checks
from sonotune.training.adaptation import objective_of
from sonotune.training.artifacts import save_artifacts
from sonotune.training.compatibility import TRAINING_DATA, CheckpointPlace, Fingerprint, digest_audio
from sonotune.training.inputs import RunInputs, load_inputs, loop_settings, training_data
from sonotune.training.logging.run_log import Listener
from sonotune.training.loop import StageLoop
from sonotune.training.model import PreparedModel, prepare_model, trained_model
from sonotune.training.retention import RunRetention
from sonotune.training.scoring import Scoring
from sonotune.training.session import Session, open_session
from sonotune.training.sharding import unsharded
from sonotune.training.state import LoopSettings
from sonotune.types import RunRecord, Score


def run(settings: LoadedConfig, *, listeners: Sequence[Listener] = ()) -> tuple[RunRecord, Path]:
    """Train as configured; resumes by itself where the run directory holds a checkpoint of the same configuration.

    Where `torchrun` has started several processes, all of them call this, and the first one writes.

    Args:
        settings: The configuration and where each value came from.
        listeners: See progress as it happens.

    Returns:
        The finished record, as it stands in `run.json`, and the run's directory.

    Raises:
        SonotuneError: With an exit code that says what went wrong (see `errors`).
    """
    with open_session(settings, listeners) as session:
        torch.manual_seed(torch_seed(session.config.training.seed, "initialisation"))
        steps = loop_settings(session.config, session.compute, begun=session.micro_batches())
        inputs = load_inputs(session.config, session.compute, finding=session.log.finding)
        fingerprint = resume_fingerprint(session, inputs, steps)
        model = prepare_model(session, inputs, steps)
        with session.trackers() as trackers:
            scoring, retention = Scoring(session, inputs, model, trackers), RunRetention(session, inputs)
            if session.config.evaluation.zero_shot:
                scoring.score("before", once=True)
            retention.before(model)
            if not session.has_checkpoint:
                scoring.measure_entropy("before", 0)
            loop = train(session, inputs, model, steps, fingerprint, scoring)
            best_step = loop.load_best(session.log.record.scores.get("before", {}))
            if best_step == 0:
                scoring.start_was_best(loop.state)
            model = scoring.model = trained_model(session, model)
            save_artifacts(session, model)
            scoring.measure_entropy("after", loop.state.step if best_step is None else best_step)
            scoring.score("after")
            scoring.score("test")
            retention.after(model, scoring.score_now if scoring.has_development_clips else None)
    return session.log.record, session.log.directory.path


def train(
    session: Session,
    inputs: RunInputs,
    model: PreparedModel,
    steps: LoopSettings,
    fingerprint: Fingerprint,
    scoring: Scoring,
) -> StageLoop:
    """Run every stage, from the newest checkpoint where there is one, and check that what should train did, alone.

    Raises:
        TrainingCheckError: Something else moved, nothing did, or the adapter is not applied.
    """
    config, log, loaded = session.config, session.log, model.loaded

    def scores() -> Mapping[str, Score]:
        return scoring.development_scores(loop.state.step)

    loop = StageLoop(
        objective_of(config, inputs.task, teacher=inputs.teacher),
        loaded,
        model.stages,
        settings=steps,
        data=training_data(config, inputs.prepared, session.training_crew),
        compute=session.compute,
        checkpoints=CheckpointPlace(folder=log.directory.checkpoints_dir, fingerprint=fingerprint),
        log=log,
        callbacks=model.callbacks,
        evaluate=scores if scoring.has_development_clips else None,
        stop=session.stop,
    )
    frozen = checks.fingerprint(loaded.module, exclude=all_stages(*model.stages))
    start = checks.fingerprint(loaded.module, exclude=frozenset(frozen))
    if not session.has_checkpoint and scoring.has_development_clips and "before" in log.record.scores:
        loop.keep_start()
    _resume(session, loop, fingerprint)
    with session.stop.waits(True):
        loop.run()
    checks.check_frozen(frozen, loaded.module, exclude=all_stages(*model.stages))
    checks.check_moved(start, loaded.module, model.stages, loaded)
    with unsharded(loaded.module):
        checks.check_applied(loaded, autocast=session.compute.accelerator.autocast)
    log.event("spent", step=loop.state.step, seconds=loop.state.spent)
    return loop


def resume_fingerprint(session: Session, inputs: RunInputs, steps: LoopSettings) -> Fingerprint:
    """What a checkpoint must share with this run; all processes must have the same.

    Raises:
        ConfigError: Another process was started with something else.
    """
    processes, directory = session.compute.processes, session.log.directory.path
    fingerprint = Fingerprint.of(
        inputs.corpus,
        inputs.opened.loaded,
        steps,
        settings=session.log.record.config_digest,
        audio=digest_audio(inputs.corpus, directory, processes, resumed=session.has_checkpoint),
        precision=session.compute.precision,
        bits=inputs.bits,
        teacher=None if inputs.teacher is None else f"{inputs.teacher.digest}, {inputs.teacher.bits}",
        allow_change=session.config.run.allow_change,
    )
    test_data = inputs.corpus.digests.get("test", "none")
    processes.assert_equal({**fingerprint.values, "test data": test_data})
    return fingerprint


def _resume(session: Session, loop: StageLoop, fingerprint: Fingerprint) -> None:
    """Put the loop where the newest checkpoint left off.

    Raises:
        RunDirectoryError: The run is finished, or there is no checkpoint and there has to be one.
    """
    log, changed = session.log, dict[str, tuple[str, str]]()
    saved = checkpoint.newest_of_all(log.directory.checkpoints_dir, session.compute.processes, event=log.event)
    if saved is not None:
        differing = loop.resume(saved)
        if log.was_finished and not differing:
            raise RunDirectoryError(f"{log.directory.path} holds a finished run of these settings and these clips.")
        if TRAINING_DATA in differing:
            changed[TRAINING_DATA] = (saved.state["identity"][TRAINING_DATA], fingerprint.values[TRAINING_DATA])
    elif session.config.run.resume == "must":
        raise RunDirectoryError(f"{log.directory.path} holds no checkpoint to resume, and run.resume is must.")
    if log.directory.resumed:
        log.resume_at(loop.state.step, changed)
