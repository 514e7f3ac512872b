"""What a benchmark measures: counts of weights are exact, times and energies add up."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonotune.data.manifest import read_manifest
from sonotune.registry import resolve_asset
from sonotune.serving import benchmark as module
from sonotune.serving.benchmark import Benchmark, BenchmarkSettings, Latency, Opened, benchmark
from sonotune.serving.recognizer import Recognizer
from sonotune.types import Clip

CLIPS = 6


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return read_manifest(resolve_asset("assets:quickstart") / "test.jsonl")[:CLIPS]


def measured(clips: list[Clip], checkpoint: str, *, bits: int = 16, **settings: object) -> Benchmark:
    def opened() -> Opened:
        model = Recognizer.open(checkpoint, bits=bits, device="cpu", precision="fp32", language="en")
        return Opened(model=model, clips=clips)

    return benchmark(opened, BenchmarkSettings(latency_clips=3, **settings))  # type: ignore[arg-type]


def test_bits_change_the_bytes_and_not_the_count_of_parameters(clips: list[Clip]) -> None:
    whole, packed = (measured(clips, "assets:whisper-nano", bits=bits) for bits in (16, 4))
    assert (whole.bits, packed.bits) == (16, 4)
    assert whole.parameters == packed.parameters
    assert whole.adapter_parameters == packed.adapter_parameters == 0
    assert packed.weight_bytes < 0.4 * whole.weight_bytes
    body = packed.to_json()
    assert body["compression"]["parameters"] is None
    assert body["compression"]["size"] == pytest.approx(2 * packed.parameters / packed.weight_bytes)
    assert body["scores"]["wer"]["count"] == CLIPS


def test_times_are_of_the_work(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(10_000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(now)))  # every reading is a second later
    found = measured(clips, "assets:whisper-nano", rounds=3, hourly_price=3600.0, watts=10.0)
    assert found.clips_per_s == pytest.approx(CLIPS)
    assert found.audio_s_per_s == pytest.approx(found.audio_s)
    assert found.latency == Latency(p50=1.0, p90=1.0, p99=1.0, clips=3)
    assert found.first_token == found.latency
    assert found.cost_per_audio_hour == pytest.approx(3600.0 / found.audio_s)
    assert found.peak_bytes >= found.start_bytes > 0
    if found.power.label == "estimated":  # a machine with counters measures
        assert found.power.joules_per_audio_hour is not None
        assert found.power.idle_watts is None


def test_a_ctc_model_has_no_first_token_and_clips_without_text_no_score(clips: list[Clip], tmp_path: Path) -> None:
    from dataclasses import replace

    found = measured([replace(clip, text=None) for clip in clips], "assets:ctc-nano")
    assert found.first_token is None
    assert found.scores == {}
    assert found.context is None


def test_clips_of_the_latency_are_spread_over_the_lengths() -> None:
    lengths = [5.0, 1.0, 9.0, 3.0, 7.0]
    made = [Clip(id=str(length), path=Path("x.wav"), duration_s=length) for length in lengths]
    assert [clip.duration_s for clip in module._spread(made, 3)] == [1.0, 5.0, 9.0]
    assert len(module._spread(made, 99)) == 5


def test_percentiles() -> None:
    found = Latency.of([float(value) for value in range(101)])
    assert (found.p50, found.p90, found.p99, found.clips) == (50.0, 90.0, 99.0, 101)
