"""Time and money of a run, from a throughput that was measured or stated and a price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sonotune.errors import ConfigError, RunDirectoryError
from sonotune.json_files import Count, read_json
from sonotune.runs import read_events


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a run takes.

    Attributes:
        audio_s: Seconds of audio that are trained on, every epoch counted.
        throughput: Seconds of audio that one device trains on in a second.
        throughput_source: Where that comes from.
        devices: Devices at once; they are taken to share the work without loss.
        price_per_hour: Of one device, in whatever currency; None where none was given.
    """

    audio_s: float
    throughput: float
    throughput_source: str
    devices: int
    price_per_hour: float | None

    @property
    def seconds(self) -> float:
        """Of the wall, for training steps alone: no loading, no evaluation."""
        return self.audio_s / (self.throughput * self.devices)

    @property
    def cost(self) -> float | None:
        """Device hours times their price."""
        if self.price_per_hour is None:
            return None
        return self.seconds / 3600 * self.devices * self.price_per_hour


def estimate(
    *,
    audio_hours: float,
    stages: Sequence[tuple[int, int | None]],
    step_seconds: float,
    throughput: str,
    devices: int,
    price_per_hour: float | None,
    checkpoint: str | None = None,
) -> Cost:
    """Time and price of a run.

    Args:
        audio_hours: Of the training clips.
        stages: Passes over them of each stage, and its limit on steps or None.
        step_seconds: Seconds of audio in a step of all its micro-batches, of all devices.
        throughput: A number of audio seconds a second and device, or the directory of a run that was measured.
        devices: At once.
        price_per_hour: Of one device.
        checkpoint: Of the model that is planned; None does not compare it with that of a measured run.

    Raises:
        ConfigError: The throughput is neither, is of a run of another model, or a number is out of range.
    """
    for name, value in (("--audio-hours", audio_hours), ("--devices", devices), ("--price", price_per_hour)):
        if value is not None and not (value > 0 or (name == "--price" and value == 0)):
            raise ConfigError(f"{name} is {value:g}; it must be above 0. Leave it out where it is not known.")
    rate, source = read_throughput(throughput, checkpoint=checkpoint)
    audio_s = sum(
        min(3600 * audio_hours * epochs, float("inf") if steps is None else steps * step_seconds)
        for epochs, steps in stages
    )
    return Cost(
        audio_s=audio_s, throughput=rate, throughput_source=source, devices=devices, price_per_hour=price_per_hour
    )


def read_throughput(given: str, *, checkpoint: str | None = None) -> tuple[float, str]:
    """Seconds of audio a second and device: a number, or what the steps of a finished run took.

    The first step of a run is left out, because it warms up; a run of one step has nothing else.

    Args:
        given: The number or the directory.
        checkpoint: Of the model that the run must have trained; None takes any.

    Raises:
        ConfigError: It is neither a number above 0 nor a directory with steps in its `events.jsonl`, or the run
            trained another model.
    """
    try:
        stated = float(given)
    except ValueError:
        return _measured(Path(given), checkpoint)
    if not 0 < stated < float("inf"):
        raise ConfigError(f"--throughput is {given}; seconds of audio trained in a second are above 0.")
    return stated, "stated"


class _Environment(TypedDict):
    world_size: Count


class _Model(TypedDict, total=False):
    checkpoint: str


class _Record(TypedDict):
    environment: _Environment
    model: NotRequired[_Model]


_RECORD = TypeAdapter(_Record)


def _measured(run: Path, checkpoint: str | None) -> tuple[float, str]:
    events = run / "events.jsonl"
    try:
        lines = list(read_events(events)) if events.exists() else None
    except RunDirectoryError as error:
        raise ConfigError(f"--throughput {run} cannot be used: {error}") from error
    if lines is None:
        raise ConfigError(
            f"--throughput {run} is neither a number nor a run: {events} is not there. "
            "Give seconds of audio trained in a second on one device, or the directory of a run."
        )
    steps = [line for line in lines if "audio_s" in line and isinstance(line.get("seconds"), int | float)]
    counted = steps[1:] or steps
    seconds = sum(float(step["seconds"]) for step in counted)
    if not seconds:
        raise ConfigError(
            f"the run {run} has no steps in its events.jsonl, so there is no throughput in it. Name one that trained."
        )
    try:
        record = read_json(run / "run.json", _RECORD, error=ConfigError, do="")
    except ConfigError:
        count = 1  # its events are all there is
    else:
        count = record["environment"]["world_size"]
        _refuse_other_model(run, record.get("model", {}).get("checkpoint"), checkpoint)
    source = f"{len(counted)} steps of {run.name}" + (f" on {count} devices" if count > 1 else "")
    return sum(float(step["audio_s"]) for step in counted) / seconds / max(1, count), source


def _refuse_other_model(run: Path, measured: str | None, planned: str | None) -> None:
    """A model of another size trains at another speed.

    Raises:
        ConfigError: The run trained another model than the one that is planned.
    """
    if measured is None or planned is None or _place(measured) == _place(planned):
        return
    raise ConfigError(
        f"--throughput {run} was measured on {measured}, and the plan is for {planned}. Give a run of that model, such "
        "as one of training.max_steps=20, or the seconds of audio that one device trains on in a second."
    )


def _place(checkpoint: str) -> str:
    folder = Path(checkpoint).expanduser()
    return str(folder.resolve()) if folder.is_dir() else checkpoint
