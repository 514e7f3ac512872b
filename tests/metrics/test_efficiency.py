"""Memory and energy readers, against what the test itself allocates or a made-up counter says."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sonotune.metrics.efficiency import Energy, PeakMemory, per_second, real_time_factor

MB = 1_000_000


def run(program: str) -> list[int]:
    """Run in a fresh process, whose memory no other test has grown."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_memory_of_the_block_is_seen_and_is_not_counted_before() -> None:
    found = run(
        "import json, numpy as np\n"
        "from sonotune.metrics.efficiency import PeakMemory\n"
        "with PeakMemory(interval_s=30) as memory:\n"  # no sample falls inside: the kernel's mark must tell
        "    block = np.ones(200_000_000, dtype=np.uint8)\n"
        "    del block\n"
        "with PeakMemory(interval_s=0.01) as later:\n"
        "    pass\n"
        "print(json.dumps([memory.start_bytes, memory.peak_bytes, later.peak_bytes]))\n"
    )
    start, peak, later = found
    assert peak - start >= 190 * MB
    assert later < peak - 150 * MB


def test_children_count() -> None:
    child = (
        "import numpy as np, time\nblock = np.ones(150_000_000, dtype=np.uint8)\nprint(1, flush=True)\ntime.sleep(30)"
    )
    with PeakMemory(interval_s=0.02) as memory:
        process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 10
        while memory.peak_bytes - memory.start_bytes < 140 * MB and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait()
        process.stdout.close()
    assert memory.peak_bytes - memory.start_bytes >= 140 * MB


def test_reading_children_takes_no_time_worth_mentioning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel walks all pages of a child for it; beside training every 50 ms it took a third of a processor."""
    calls = []

    def slow(process: psutil.Process) -> SimpleNamespace:
        calls.append(process.pid)
        time.sleep(0.05)
        return SimpleNamespace(uss=0)

    monkeypatch.setattr(psutil.Process, "memory_full_info", slow)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    try:
        with PeakMemory(interval_s=0.01):
            time.sleep(1.5)
    finally:
        child.kill()
        child.wait()
    assert 1 <= calls.count(child.pid) <= 2  # when the block begins, and in its end at most


def test_an_error_inside_the_block_still_ends_the_thread() -> None:
    memory, before = PeakMemory(interval_s=0.01), set(threading.enumerate())
    started: list[threading.Thread] = []

    def fail() -> None:
        started.extend(set(threading.enumerate()) - before)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), memory:
        fail()
    assert memory.peak_bytes > 0
    [sampling] = started
    assert not sampling.is_alive()


def test_the_interval_must_be_positive() -> None:
    with pytest.raises(ValueError, match="above 0"):
        PeakMemory(interval_s=0)


def counters(folder: Path, *, energy_uj: int, range_uj: int = 1_000_000_000) -> Path:
    for name, label in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:1", "psys")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "name").write_text(label + "\n")
        (folder / name / "energy_uj").write_text(f"{energy_uj}\n")
        (folder / name / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return folder


def test_energy_is_read_once_per_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    folder = counters(tmp_path, energy_uj=5_000_000)
    with Energy(powercap=folder) as energy:
        counters(tmp_path, energy_uj=12_500_000)
    assert energy.joules == pytest.approx(7.5)  # the parts and the platform of the package would count twice
    assert energy.label == "measured"
    assert energy.sources == ("RAPL package-0",)
    assert "nvidia-ml-py" in energy.reason


def test_a_counter_that_wraps_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    folder = counters(tmp_path, energy_uj=999_000_000)
    with Energy(powercap=folder) as energy:
        counters(tmp_path, energy_uj=2_000_000)
    assert energy.joules == pytest.approx(3.0)


def test_a_counter_that_stops_answering_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    folder = counters(tmp_path, energy_uj=1)
    with Energy(powercap=folder) as energy:
        (folder / "intel-rapl:0" / "energy_uj").unlink()
    assert energy.joules is None
    assert energy.label == "none"
    assert "stopped answering: RAPL package-0" in energy.reason


def test_boards_are_read_in_millijoules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([1000.0, 4000.0])
    board = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(readings) if handle == 1 else 1 / 0,
    )
    monkeypatch.setitem(sys.modules, "pynvml", board)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with Energy(powercap=tmp_path) as energy:
        pass
    assert energy.joules == pytest.approx(3.0)
    assert energy.label == "measured"
    assert "no processor counters" in energy.reason


def test_without_counters_the_reason_is_given_or_the_energy_is_called_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Energy(powercap=tmp_path) as nothing:
        pass
    assert nothing.joules is None
    assert nothing.label == "none"
    assert "RAPL" in nothing.reason
    assert "NVML" in nothing.reason
    with Energy(powercap=tmp_path, assumed_watts=1000) as assumed:
        time.sleep(0.01)
    assert assumed.label == "estimated"
    assert assumed.joules is not None
    assert 5 < assumed.joules < 1000


def test_speed() -> None:
    assert real_time_factor(5, 20) == 0.25
    assert per_second(30, 2) == 15
    assert per_second(30, 0) == 0
    for seconds, audio in ((1, 0), (-1, 1)):
        with pytest.raises(ValueError, match="longer than 0 s"):
            real_time_factor(seconds, audio)


def test_metrics_do_not_import_torch_or_what_is_slow() -> None:
    program = (
        "import sys, json\n"
        "from sonotune.metrics import efficiency, error_rate, intervals, slices, text\n"
        "print(json.dumps([m for m in ('torch', 'transformers', 'jiwer', 'sacrebleu', 'scipy') if m in sys.modules]))\n"
    )
    assert run(program) == []


def test_energy_is_known_before_the_block_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run writes its record inside the block."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    folder = counters(tmp_path, energy_uj=1_000_000)
    energy = Energy(powercap=folder)
    assert energy.joules is None
    with energy:
        counters(tmp_path, energy_uj=3_000_000)
        assert energy.joules == pytest.approx(2.0)
        counters(tmp_path, energy_uj=4_500_000)
    assert energy.joules == pytest.approx(3.5)
