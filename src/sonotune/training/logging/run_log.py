"""What a run tells while it goes: events, findings and timings, its record, and whoever listens."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from sonotune.metrics.efficiency import Energy, PeakMemory
from sonotune.processes import Processes
from sonotune.runs import RECORD_SCHEMA, RunDirectory, code_version, environment
from sonotune.types import Finding, RunRecord, RunStatus, Score

_CHANGED = "run.allow_change"


class Listener(Protocol):
    """Sees progress as it happens: a progress bar, a tracker, a test."""

    def started(self, total_steps: int, step: int) -> None:
        """Training begins or resumes at a step."""
        ...

    def stepped(self, values: Mapping[str, Any]) -> None:
        """A step was made; the values are those of its event."""
        ...

    def evaluated(self, step: int, scores: Mapping[str, Score]) -> None:
        """The development clips were scored."""
        ...


class EventLog:
    """What the parts of a training loop tell. This one tells listeners alone; `RunLog` also writes to a run directory.

    Attributes:
        listeners: Hear of steps and evaluations.
        spent: Phase -> wall seconds, over all sessions of a run.
    """

    def __init__(self, listeners: Sequence[Listener] = ()) -> None:
        self.listeners: list[Listener] = list(listeners)
        self.spent: dict[str, float] = {}

    def event(self, kind: str, **fields: Any) -> None:
        """One line of `events.jsonl`."""

    def finding(self, findings: Iterable[Finding]) -> None:
        """Further findings, for the record."""

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds inside to a phase of the run."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent[phase] = self.spent.get(phase, 0.0) + time.perf_counter() - began

    def started(self, total_steps: int, step: int) -> None:
        """Tell the listeners that training begins."""
        for listener in self.listeners:
            listener.started(total_steps, step)

    def stepped(self, values: Mapping[str, Any]) -> None:
        """Log a step and tell the listeners."""
        self.event("step", **values)
        for listener in self.listeners:
            listener.stepped(values)

    def ended(self) -> None:
        """Tell the listeners that want to know (`ended()`) that no step follows."""
        for listener in self.listeners:
            if (tell := getattr(listener, "ended", None)) is not None:
                tell()

    def evaluated(self, step: int, scores: Mapping[str, Score], *, best: bool) -> None:
        """Log an evaluation and tell the listeners."""
        plain = {name: score.to_json() for name, score in scores.items()}
        self.event("evaluation", step=step, best=best, scores=plain)
        for listener in self.listeners:
            listener.evaluated(step, scores)


class RunLog(EventLog):
    """The run record and the event log of one run directory.

    Args:
        directory: The open run directory.
        config: Resolved settings, nested.
        origin: Dotted setting -> the place that set it.
        digest: Of the settings that can change the result.
        memory: Samples peak memory.
        energy: Reads energy.
        listeners: Hear of steps and evaluations.
    """

    def __init__(
        self,
        directory: RunDirectory,
        *,
        config: Mapping[str, Any],
        origin: Mapping[str, str],
        digest: str,
        memory: PeakMemory,
        energy: Energy,
        listeners: Sequence[Listener] = (),
    ) -> None:
        super().__init__(listeners)
        self.directory = directory
        self._held = False
        self._memory, self._energy, self._started = memory, energy, time.monotonic()
        earlier = directory.read_record() if directory.record_path.is_file() else None
        self._earlier_s = earlier.seconds if earlier else 0.0
        self._earlier_peak = earlier.peak_memory_bytes if earlier else 0
        self._earlier_joules = earlier.energy_joules if earlier else None
        self.was_finished = earlier is not None and earlier.status == "finished"
        self.record = RunRecord(
            schema=RECORD_SCHEMA,
            run_id=directory.path.name,
            status="running",
            config=config,
            config_origin=origin,
            config_digest=digest,
            data_digest={},
            code=code_version(),
            environment=environment(),
            model={},
            ranks={},
            findings=(),
            scores=earlier.scores if earlier else {},
            stages=(),
            choices={key: earlier.choices[key] for key in (_CHANGED,) if earlier and key in earlier.choices},
            peak_memory_bytes=0,
            seconds=0.0,
        )

    def event(self, kind: str, **fields: Any) -> None:
        """See `EventLog.event`."""
        self.directory.event(kind, **fields)

    def broadcast(self, processes: Processes) -> None:
        """Tell the processes that visit the directory where it is, and what an earlier session left in it."""
        directory = self.directory
        directory.path, directory.resumed, scores = processes.broadcast(
            (directory.path, directory.resumed, self.record.scores)
        )
        self.record = replace(self.record, scores=scores)

    def hold(self) -> None:
        """Leave `run.json` as an earlier session left it until this one goes on from where that ended."""
        self._held = True

    def resume_at(self, step: int, data: Mapping[str, tuple[str, str]]) -> None:
        """Write from here on, and log what an earlier session did otherwise.

        Args:
            step: From which on.
            data: Clips that are others than there -> their digests, then and now.
        """
        self._held = False
        self.directory.truncate_events_after(step)
        self.directory.event("resumed", step=step)
        self.directory.drop_predictions("after", "test")
        self.write(scores={key: value for key, value in self.record.scores.items() if key == "before"})
        if changed := {**self.directory.changed, **data}:
            what = {name: {"was": was, "now": now} for name, (was, now) in changed.items()}
            self.directory.event("changed", step=step, what=what)
            told = "; ".join(f"{name} was {was!r} and is {now!r}" for name, (was, now) in changed.items())
            earlier = self.record.choices.get(_CHANGED)
            self.chose({_CHANGED: "; ".join(part for part in (earlier, f"from step {step} on, {told}") if part)})

    def write(self, **changes: Any) -> RunRecord:
        """Change fields of the record, bring the running totals up to date and write `run.json`."""
        joules = self._energy.joules
        if self._earlier_joules is not None:
            joules = self._earlier_joules + (joules or 0.0)
        self.record = replace(
            self.record,
            **changes,
            seconds=self._earlier_s + time.monotonic() - self._started,
            peak_memory_bytes=max(self._earlier_peak, self._memory.peak_bytes, self.record.peak_memory_bytes),
            energy_joules=joules,
        )
        if not self._held:
            self.directory.write_record(self.record)
        return self.record

    def scored(self, moment: str, scores: Mapping[str, Score]) -> None:
        """Keep the scores of a moment of the run (`before`, `after`, `test`)."""
        plain = {name: score.to_json() for name, score in scores.items()}
        self.write(scores={**self.record.scores, moment: plain})

    def finding(self, findings: Iterable[Finding]) -> None:
        """See `EventLog.finding`."""
        self.write(findings=(*self.record.findings, *findings))

    def chose(self, choices: Mapping[str, str]) -> None:
        """Keep decisions taken automatically, each with its reason, and log them as events."""
        for setting, reason in choices.items():
            self.directory.event("choice", setting=setting, reason=reason)
        self.write(choices={**self.record.choices, **choices})

    def close(self, status: RunStatus) -> RunRecord:
        """Write the final state."""
        return self.write(status=status)
