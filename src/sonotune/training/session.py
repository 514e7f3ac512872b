"""A run as it opens and closes: its directory, log, devices, worker pools and signals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sonotune.config.load import LoadedConfig
from sonotune.config.schema import RunConfig
from sonotune.errors import (
    AdapterError,
    ConfigError,
    Interrupted,
    ManifestError,
    MissingExtraError,
    ModelError,
    ProcessError,
    SonotuneError,
    TextError,
)
from sonotune.features.workers import Crew
from sonotune.metrics.efficiency import Energy, PeakMemory
from sonotune.processes import Processes
from sonotune.runs import RunDirectory
from sonotune.training import checkpoint
from sonotune.training.logging.run_log import Listener, RunLog
from sonotune.training.logging.trackers import Trackers, check_trackers
from sonotune.training.runtime import ComputeSetup, StopRequest, set_up_compute, stop_on_signals


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What every part of a run works with.

    Attributes:
        config: The settings; they are never rewritten.
        log: Record, events, findings and timings.
        compute: Device, precision and the other processes.
        stop: Whether a signal has asked to stop.
        training_crew: Worker processes of the training loop.
        evaluation_crew: Those of evaluations, which may come in the middle of a training epoch.
    """

    config: RunConfig
    log: RunLog
    compute: ComputeSetup
    stop: StopRequest
    training_crew: Crew
    evaluation_crew: Crew

    @property
    def has_checkpoint(self) -> bool:
        """Whether the run resumes from a checkpoint."""
        return bool(checkpoint.published(self.log.directory.checkpoints_dir))

    def micro_batches(self) -> int | None:
        """Micro-batches of a step of the run that resumes; None for one that begins. All processes have to ask."""
        saved = checkpoint.published(self.log.directory.checkpoints_dir)
        return self.compute.processes.broadcast(checkpoint.micro_batches(saved[0]) if saved else None)

    def trackers(self) -> Trackers:
        """The trackers of the run, which hear of its progress from here on; a context that closes them."""
        trackers = Trackers(
            self.config.run.trackers if self.compute.processes.main else (),
            folder=self.log.directory.path,
            config=self.log.record.config,
            event=self.log.event,
        )
        self.log.listeners.append(trackers)
        return trackers


@contextmanager
def open_session(settings: LoadedConfig, listeners: Sequence[Listener] = ()) -> Iterator[Session]:
    """Open a run, and close it: its record says in the end whether it finished, failed or was interrupted.

    Args:
        settings: The configuration and where each value came from.
        listeners: See progress as it happens.

    Raises:
        RunDirectoryError: The directory cannot be used.
        ConfigError: The settings ask for what is not to be had here.
    """
    config = settings.config
    check_trackers(config.run.trackers)
    compute = set_up_compute(config.training.precision, threads=config.training.threads)
    with (
        _open_directory(settings, compute.processes) as directory,
        stop_on_signals() as stop,
        stop.waits(False),
        PeakMemory() as memory,
        Energy() as energy,
        Crew(config.data.loader_workers) as for_training,
        Crew(config.data.loader_workers) as for_evaluation,
    ):
        log = RunLog(
            directory,
            config=settings.plain(),
            origin=settings.origin,
            digest=settings.digest,
            memory=memory,
            energy=energy,
            listeners=listeners,
        )
        try:
            session = Session(
                config=config,
                log=log,
                compute=compute,
                stop=stop,
                training_crew=for_training,
                evaluation_crew=for_evaluation,
            )
            if directory.resumed and session.has_checkpoint:
                log.hold()
            log.write()
            log.broadcast(compute.processes)
            yield session
        except Interrupted:
            log.close("interrupted")
            raise
        except BaseException as error:
            with suppress(SonotuneError, OSError):  # a full disk fails these as well; the first error is the one to see
                if not (_settings_refused(error, log) and directory.discard()):
                    directory.list_problems(error)
                    log.close("failed")
                    directory.event("failed", error=type(error).__name__, message=str(error))
            raise
        directory.event("finished")
        log.close("finished")
        compute.processes.destroy()


def _settings_refused(error: BaseException, log: RunLog) -> bool:
    """Whether a run ends because of its settings, so that there is nothing to keep: neither results nor findings."""
    if isinstance(error, (ConfigError, ModelError, AdapterError, MissingExtraError)):
        return True
    return isinstance(error, (ManifestError, TextError)) and not log.record.findings and not error.listing


def _open_directory(settings: LoadedConfig, processes: Processes) -> RunDirectory:
    """Opened by the first process; the others visit it, or hear why it was refused."""
    if not processes.main:
        if refused := processes.broadcast(""):
            raise ProcessError(f"process 0 was refused: {refused}")
        return RunDirectory.visit(settings.run_dir())
    try:
        directory = RunDirectory.create_or_open(
            settings.run_dir(),
            config_digest=settings.digest,
            settings=settings.deciding(),
            resume=settings.config.run.resume,
            allow_change=settings.config.run.allow_change,
        )
    except SonotuneError as error:
        processes.broadcast(str(error))
        raise
    processes.broadcast("")
    return directory
