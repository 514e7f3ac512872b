"""What it costs to recognise with a model: throughput, latency, memory, size and energy, beside its score.

One form of a model is measured in a process of its own (`cli.benchmark` starts them), so that the memory of one is not
in the figure of another. Energy counters are of the whole machine: what it uses while nothing runs is taken out.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch

from sonotune.evaluation.evaluate import predict_clips
from sonotune.metrics.efficiency import Energy, PeakMemory
from sonotune.models.base import LoadedModel
from sonotune.models.quantize import held_bytes
from sonotune.progress import phase
from sonotune.serving.recognizer import Recognizer
from sonotune.types import DEFAULT_DECODING, Clip, DecodingSettings, Score

PERCENTILES: Final = (50, 90, 99)
IDLE_S: Final = 5.0
"""Seconds over which the power of the idle machine is read, before the model is opened."""
_WARM_UP: Final = 2  # clips; the first pass compiles kernels and fills caches


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSettings:
    """How a form is measured.

    Attributes:
        rounds: Passes over all clips; the median counts.
        latency_clips: Clips that are recognised one by one, spread evenly over the lengths.
        watts: Power to assume where nothing can be read; then energy is `estimated`.
        hourly_price: Of the machine, in any currency.
        decoding: As the clips are decoded.
        batch_seconds: Padded seconds of a batch.
        max_clips: Clips of a batch at most.
    """

    rounds: int = 1
    latency_clips: int = 20
    watts: float | None = None
    hourly_price: float | None = None
    decoding: DecodingSettings = DEFAULT_DECODING
    batch_seconds: float = 240.0
    max_clips: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model and the clips that it recognises.

    Attributes:
        model: Ready to recognise.
        clips: Those with references are scored.
    """

    model: Recognizer
    clips: Sequence[Clip]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds from a recording to its whole text, or to its first token, one recording at a time.

    Attributes:
        p50: Median.
        p90: 90th percentile.
        p99: 99th percentile.
        clips: That were recognised.
    """

    p50: float
    p90: float
    p99: float
    clips: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Percentiles of measured times."""
        p50, p90, p99 = np.percentile(seconds, PERCENTILES).tolist()
        return cls(p50=p50, p90=p90, p99=p99, clips=len(seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Energy of recognition.

    Attributes:
        label: `measured` by counters, `estimated` from a power that was assumed, or `none`.
        joules_per_audio_hour: Energy for an hour of audio, what the idle machine uses taken out; None for `none`.
        idle_watts: Power of the idle machine; None where it was not measured.
        sources: Counters that were read.
        reason: Why one could not be.
    """

    label: Literal["measured", "estimated", "none"]
    joules_per_audio_hour: float | None
    idle_watts: float | None
    sources: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """What was measured of one form of a model.

    Attributes:
        clips: That were recognised.
        audio_s: Their length in seconds.
        clips_per_s: Recognised in a second, in batches; reading files is inside.
        audio_s_per_s: Seconds of audio in a second (RTFx).
        latency: From a recording to its text.
        first_token: From a recording to the first token; None of a model that writes all at once.
        peak_bytes: Largest memory of the process, the libraries and the opening of the model included.
        start_bytes: Of that, what the process had before the model.
        cuda_peak_bytes: Largest memory of the card; None without one.
        weight_bytes: Of all weights as they are held.
        adapter_parameters: Of low-rank matrices and what trained beside them.
        parameters: Of the bare model; tied weights count once.
        bits: Of the frozen linears.
        precision: Of the matrix products.
        context: How much of the model's window is computed; None where it has none.
        power: Energy.
        cost_per_audio_hour: In the currency of the price; None without one.
        scores: Of the clips that have references.
    """

    clips: int
    audio_s: float
    clips_per_s: float
    audio_s_per_s: float
    latency: Latency
    first_token: Latency | None
    peak_bytes: int
    start_bytes: int
    cuda_peak_bytes: int | None
    weight_bytes: int
    adapter_parameters: int
    parameters: int
    bits: int
    precision: str
    context: str | None
    power: Power
    cost_per_audio_hour: float | None
    scores: Mapping[str, Score]

    def to_json(self) -> dict[str, Any]:
        """The form of `benchmark --json`; times in seconds, memory in bytes."""
        plain = asdict(replace(self, scores={}))
        size = 2 * self.parameters / self.weight_bytes
        return plain | {
            "compression": {
                "size": size,
                "parameters": self.parameters / self.adapter_parameters if self.adapter_parameters else None,
            },
            "scores": {name: score.to_json() for name, score in self.scores.items()},
        }


def benchmark(open_model: Callable[[], Opened], settings: BenchmarkSettings) -> Benchmark:
    """Measure a model, from its opening on.

    Args:
        open_model: Opens it and finds the clips; called once, so that the memory is that of one model.
        settings: How.

    Raises:
        ManifestError: There are no clips.
    """
    idle_watts = _idle_watts()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with PeakMemory() as memory:
        opened = open_model()
        model, clips = opened.model, opened.clips
        recognize = _recognition(model, settings)
        recognize(clips[:_WARM_UP], settings.decoding)
        seconds, energies = [], []
        for number in range(settings.rounds):
            with phase(f"round {number + 1} of {settings.rounds}"), Energy(assumed_watts=settings.watts) as energy:
                seconds.append(_timed(recognize, clips, settings.decoding))
            energies.append(energy)
        few = _spread(clips, settings.latency_clips)
        with phase("recognising one by one"):
            latency = Latency.of([_timed(recognize, [clip], settings.decoding) for clip in few])
            first_token = None
            if _writes_tokens(model.opened.loaded):
                one = replace(settings.decoding, max_new_tokens=1, beam_size=1, temperatures=(0.0,))
                first_token = Latency.of([_timed(recognize, [clip], one) for clip in few])
        scores = _scores(model, clips, settings)
    took, audio_s = statistics.median(seconds), math.fsum(clip.duration_s for clip in clips)
    loaded = model.opened.loaded
    owned = (weight.numel() for name, weight in loaded.module.named_parameters() if loaded.names.owns(name))
    return Benchmark(
        clips=len(clips),
        audio_s=audio_s,
        clips_per_s=len(clips) / took,
        audio_s_per_s=audio_s / took,
        latency=latency,
        first_token=first_token,
        peak_bytes=memory.peak_bytes,
        start_bytes=memory.start_bytes,
        cuda_peak_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        weight_bytes=held_bytes(loaded),
        adapter_parameters=sum(owned),
        parameters=_parameters(loaded),
        bits=min(loaded.quantized.values(), default=16),
        precision=model.precision,
        context=loaded.context if loaded.trained_contexts else None,
        power=_power(energies, seconds, audio_s, idle_watts),
        cost_per_audio_hour=None if settings.hourly_price is None else settings.hourly_price * took / audio_s,
        scores=scores,
    )


Recognition = Callable[[Sequence[Clip], DecodingSettings], object]


def _recognition(model: Recognizer, settings: BenchmarkSettings) -> Recognition:
    def recognize(clips: Sequence[Clip], decoding: DecodingSettings) -> object:
        return predict_clips(
            model.task,
            model.opened.loaded,
            clips,
            batch_seconds=settings.batch_seconds,
            max_clips=settings.max_clips,
            decoding=decoding,
            autocast=model.autocast,
        )

    return recognize


def _timed(recognize: Recognition, clips: Sequence[Clip], decoding: DecodingSettings) -> float:
    """Seconds, to the end of what was queued on a card."""
    started = time.perf_counter()
    recognize(clips, decoding)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _scores(model: Recognizer, clips: Sequence[Clip], settings: BenchmarkSettings) -> Mapping[str, Score]:
    if not any(model.task.has_reference(clip) for clip in clips):
        return {}
    return model.evaluate(
        clips, decoding=settings.decoding, batch_seconds=settings.batch_seconds, max_clips=settings.max_clips
    ).scores


def _spread(clips: Sequence[Clip], count: int) -> list[Clip]:
    """Clips spread evenly over the lengths, the shortest and the longest among them."""
    ordered = sorted(clips, key=lambda clip: (clip.duration_s, clip.id))
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in places.tolist()]


def _writes_tokens(loaded: LoadedModel) -> bool:
    return hasattr(loaded.module, "generate") and loaded.family.name != "ctc"


def _parameters(loaded: LoadedModel) -> int:
    """Of the bare model: a weight of four bits is held in half a byte, and counts as one."""
    total = 0
    for name, weight in loaded.module.named_parameters():
        if not loaded.names.owns(name):
            state = getattr(weight, "quant_state", None)
            total += weight.numel() if state is None else math.prod(state.shape)
    return total


def _idle_watts() -> float | None:
    """Power of the machine before the model is opened; None where no counter can be read."""
    with Energy() as probe:
        pass
    if probe.label != "measured":
        return None
    with phase("measuring the idle machine"), Energy() as idle:
        time.sleep(IDLE_S)
    return None if idle.joules is None else idle.joules / IDLE_S


def _power(energies: Sequence[Energy], seconds: Sequence[float], audio_s: float, idle_watts: float | None) -> Power:
    """Energy of the median round."""
    used = [
        energy.joules - (idle_watts or 0.0) * took if energy.label == "measured" else energy.joules
        for energy, took in zip(energies, seconds, strict=True)
        if energy.joules is not None
    ]
    last = energies[-1]
    return Power(
        label=last.label,
        joules_per_audio_hour=max(0.0, statistics.median(used)) * 3600 / audio_s if used else None,
        idle_watts=idle_watts,
        sources=last.sources,
        reason=last.reason,
    )
