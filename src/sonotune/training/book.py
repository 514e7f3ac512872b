"""What a run writes down about itself, kept current while it goes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sonotune.metrics.efficiency import Energy, PeakMemory
from sonotune.processes import Processes
from sonotune.runs import RECORD_SCHEMA, RunDirectory, code_version, environment
from sonotune.types import Finding, RunRecord, RunStatus, Score

_CHANGED = "run.allow_change"


class RunBook:
    """The run record and the event log of one run directory.

    Args:
        directory: The open run directory.
        config: Resolved settings, nested.
        origin: Dotted setting -> the place that set it.
        digest: Of the settings that can change the result.
        memory: Samples peak memory.
        energy: Reads energy.
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
    ) -> None:
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

    def share(self, processes: Processes) -> None:
        """Tell the processes that visit the directory where it is, and what an earlier session left in it."""
        directory = self.directory
        directory.path, directory.resumed, scores = processes.from_main(
            (directory.path, directory.resumed, self.record.scores)
        )
        self.record = replace(self.record, scores=scores)

    def hold(self) -> None:
        """Leave `run.json` as an earlier session left it until this one goes on from where that ended."""
        self._held = True

    def goes_on(self, step: int, data: Mapping[str, tuple[str, str]]) -> None:
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

    def found(self, findings: Iterable[Finding]) -> None:
        """Keep further findings."""
        self.write(findings=(*self.record.findings, *findings))

    def chose(self, choices: Mapping[str, str]) -> None:
        """Keep decisions taken automatically, each with its reason, and log them as events."""
        for setting, reason in choices.items():
            self.directory.event("choice", setting=setting, reason=reason)
        self.write(choices={**self.record.choices, **choices})

    def close(self, status: RunStatus) -> RunRecord:
        """Write the final state."""
        return self.write(status=status)
