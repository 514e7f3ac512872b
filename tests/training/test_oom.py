"""Out of memory inside a step: the same gradient in smaller parts, heeded afterwards, and advice in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from sonotune.config.load import LoadedConfig
from sonotune.errors import Interrupted, ResourceError, out_of_memory
from sonotune.processes import Processes
from sonotune.runs import read_events
from sonotune.stages import whole_run
from sonotune.training.batches import StepLoader
from sonotune.training.logging.run_log import EventLog
from sonotune.training.oom import MemoryGuard
from sonotune.training.run import run
from sonotune.training.state import TrainingState

Build = Callable[..., Any]
Settings = Callable[..., LoadedConfig]


def kept_bytes(made: Any, *indices: int) -> int:
    """What a batch of these clips keeps for its backward pass, as the guard counts it."""
    low, high = 0, 2**34
    while high - low > 1:
        middle = (low + high) // 2
        guard = MemoryGuard(made.loaded, TrainingState(), limit_bytes=middle, log=EventLog())
        try:
            with guard.watching():
                made.task.loss(made.loaded, made.batch(*indices), label_smoothing=0.0)
            high = middle
        except MemoryError:
            low = middle
    return high


def test_a_step_in_parts_has_the_same_gradient(bench: Build):
    whole, indices = bench(), (0, 1, 2, 3)
    cut = bench(memory_limit_bytes=int(0.6 * kept_bytes(whole, *indices)))
    expected = whole.accumulate(whole.batch(*indices))
    found = cut.accumulate(cut.batch(*indices))
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.labels == expected.labels
    for name, gradient in cut.gradients().items():
        torch.testing.assert_close(gradient, whole.gradients()[name], rtol=1e-3, atol=1e-6)
    [event] = cut.of("memory")
    assert event["clips"] == 4
    assert event["rung"].startswith("micro-batches of at most ")
    assert "training.memory_limit_bytes" in event["reason"]
    assert cut.loop.state.largest_s == pytest.approx(event["padded_seconds"] / 2)
    cut.accumulate(cut.batch(*indices))  # cut beforehand from now on
    assert len(cut.of("memory")) == 1


def test_a_clip_that_does_not_fit_is_recomputed_and_then_ends_the_run(bench: Build):
    made = bench()
    alone = kept_bytes(made, 0)
    tight = bench(memory_limit_bytes=alone * 3 // 4)
    tight.accumulate(tight.batch(0))
    assert [event["rung"] for event in tight.of("memory")] == ["activations are recomputed in the backward pass"]
    assert tight.loop.state.recompute
    plain = bench()
    plain.accumulate(plain.batch(0))
    for name, gradient in tight.gradients().items():
        torch.testing.assert_close(gradient, plain.gradients()[name], rtol=1e-4, atol=1e-7)
    with pytest.raises(ResourceError, match=r"(?s)a single clip does not fit.*data\.max_duration_s") as caught:
        bench(memory_limit_bytes=1000).accumulate(made.batch(0, 1))
    assert caught.value.exit_code == 5


def test_a_run_that_is_gone_on_with_heeds_what_was_learned(bench: Build, tmp_path: Path):
    limit = kept_bytes(bench(), 0, 1) + 1000
    straight = bench(memory_limit_bytes=limit, max_steps=6, save_steps=3, folder=tmp_path / "one")
    straight.loop.run()
    first = bench(memory_limit_bytes=limit, max_steps=6, save_steps=3, folder=tmp_path / "two")
    first.stop.ask("a test")
    with pytest.raises(Interrupted, match="a test"):
        first.loop.run()
    second = bench(memory_limit_bytes=limit, max_steps=6, save_steps=3, folder=tmp_path / "two")
    from sonotune.training import checkpoint

    second.loop.resume(checkpoint.newest(tmp_path / "two", on_damage=lambda path, problem: None))
    assert second.loop.state.largest_s == first.loop.state.largest_s is not None
    second.loop.run()
    for name, value in second.weights().items():
        assert torch.equal(value, straight.weights()[name])


def test_a_whole_run_under_a_limit_learns_the_same(bench: Build, settings: Settings, tmp_path: Path):
    limit = int(0.6 * kept_bytes(bench(), 0, 1, 2, 3))
    _, free = run(settings("training.max_steps=4", "model.dropout=0", folder=tmp_path / "free"))
    losses = [event["loss"] for event in read_events(free / "events.jsonl") if event["kind"] == "step"]
    _, tight = run(
        settings(
            "training.max_steps=4", "model.dropout=0", f"training.memory_limit_bytes={limit}", folder=tmp_path / "tight"
        )
    )
    told = read_events(tight / "events.jsonl")
    assert any(event["kind"] == "memory" for event in told)
    assert [event["loss"] for event in told if event["kind"] == "step"] == pytest.approx(losses, rel=1e-4)


def test_the_largest_batches_are_tried_before_the_first_step_of_each_stage(bench: Build):
    limit = kept_bytes(bench(), 8, 9) + 1000  # the longest clips are c9 and c19, in no early batch of every epoch

    def stages(loaded: Any) -> list[Any]:
        common = {
            "learning_rate": 1e-3,
            "learning_rates": {},
            "max_epochs": 1,
            "max_steps": None,
            "patience": None,
            "warmup_steps": 0,
        }
        return [replace(whole_run(loaded, **common), name=name) for name in ("one", "two")]

    made = bench(memory_limit_bytes=limit, stages=stages)
    made.loop.run()
    kinds = [event["kind"] for event in made.events]
    assert "memory" in kinds[: kinds.index("step")]
    assert "memory" not in kinds[kinds.index("step") :]
    tried = made.of("rehearsal")
    assert {event["step"] for event in tried} == {1, 6}
    padded = [event["padded_seconds"] for event in tried]
    longest = max(clip.duration_s for clip in made.loop.loader.data.clips)
    assert max(padded) == pytest.approx(4 * longest, rel=0.2)
    assert len(made.of("step")) == 10
    free = bench(stages=stages)
    free.loop.run()
    assert not free.of("rehearsal")
    assert [event["loss"] for event in made.of("step")] == pytest.approx(
        [event["loss"] for event in free.of("step")], rel=1e-3
    )


def test_where_some_batches_have_the_whole_window_that_is_tried(bench: Build):
    made = bench(memory_limit_bytes=2**40, full_context_share=0.01, max_steps=1)
    made.loop.run()
    window_s = made.loaded.frontend.max_duration_s
    assert {event["padded_seconds"] for event in made.of("rehearsal")} == {4 * window_s}


def test_a_clip_that_can_never_fit_ends_the_run_before_its_first_step(bench: Build):
    made = bench(memory_limit_bytes=1000)
    with pytest.raises(ResourceError, match="a single clip does not fit"):
        made.loop.run()
    assert not made.of("step")


class WithAnother(Processes):
    """The first of two, of which the other could not fit more than a second."""

    def __init__(self) -> None:
        super().__init__(0, 2)

    def all_gather(self, value: Any) -> list[Any]:
        return [value, replace(value, clip_ids=("other",), largest_s=1.0, recompute=True)]


def test_what_another_process_could_not_fit_is_heeded(bench: Build):
    made, state, log = bench(), TrainingState(), EventLog()
    guard = MemoryGuard(made.loaded, state, limit_bytes=None, log=log)
    loader = StepLoader(
        made.loaded, made.loop.loader.data, made.settings, processes=WithAnother(), guard=guard, log=log
    )
    group = loader.next_group(iter([made.batch(0, 1)]), 2, state)
    assert group.clip_ids[-1] == "other"
    assert (state.largest_s, state.recompute) == (1.0, True)
    assert guard.parts(made.batch(0, 1, 2))[0].padded_seconds <= 1.0
    assert made.loaded.module.is_activation_checkpointing


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a memory object"), True),
        (RuntimeError("could not create a primitive descriptor for a convolution"), False),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_is_out_of_memory(error: Exception, known: bool):
    assert out_of_memory(error) is known


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_card_that_is_full_is_cut_as_well(bench: Build):
    made = bench(accelerator=Accelerator())
    total = torch.cuda.get_device_properties(0).total_memory
    made.accumulate(made.batch(0))
    torch.cuda.set_per_process_memory_fraction(torch.cuda.max_memory_reserved() * 1.05 / total)
    try:
        made.accumulate(made.batch(*range(16)))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert made.of("memory")
