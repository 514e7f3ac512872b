"""The formula beside what is really held, and beside a step on fake tensors."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from sonotune.adapters.kinds.base import AdapterSettings
from sonotune.adapters.kinds.lora import LORA
from sonotune.adapters.ranks.choose import RankSettings, plan_ranks
from sonotune.adapters.trainable import adapt
from sonotune.errors import AdapterError, ConfigError, ModelError
from sonotune.loading import open_model
from sonotune.planning.exact import Peak, measure_step
from sonotune.planning.layout import TrainingSettings, lay_out
from sonotune.planning.memory import predict_step, static_memory
from sonotune.planning.plan import make_plan

NANO = "assets:whisper-nano"


def formula(checkpoint: str, *, clips: int = 4, clip_s: float = 4.0, tokens: int = 20, **changes: Any) -> int:
    layout = lay_out(TrainingSettings(checkpoint=checkpoint, **changes))
    return predict_step(layout, layout.batch(clips, clip_s, tokens)).peak_bytes


def exact(checkpoint: str, *, clips: int = 4, clip_s: float = 4.0, tokens: int = 20, **changes: Any) -> Peak:
    layout = lay_out(TrainingSettings(checkpoint=checkpoint, **changes))
    return measure_step(layout, layout.batch(clips, clip_s, tokens))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_weights_are_those_that_a_run_holds(bits: Any, precision: Any):
    loaded = open_model(NANO, bits=bits, precision=precision).loaded
    real = adapt(loaded, LORA, plan_ranks(loaded, RankSettings()), AdapterSettings(), precision=precision)
    held = sum(
        value.numel() * value.element_size()
        for tensors in (real.module.parameters(), real.module.buffers(), _scales(real))
        for value in tensors
    )
    rows = static_memory(lay_out(TrainingSettings(checkpoint=NANO, bits=bits, precision=precision)))
    assert sum(row["weights"] for row in rows.values()) == held
    trainable = sum(4 * value.numel() for value in real.module.parameters() if value.requires_grad)
    assert sum(row["optimizer"] for row in rows.values()) == 2 * trainable


def _scales(loaded: Any) -> list[Any]:
    """Tensors beside the codes of quantised weights."""
    found = []
    for name in loaded.quantized:
        linear = loaded.module.get_submodule(name).base_layer
        state = getattr(linear.weight, "quant_state", None)
        if state is None:
            found.append(linear.weight.SCB if linear.weight.SCB is not None else linear.state.SCB)
        else:
            found += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "bf16"},
        {"precision": "bf16", "bits": 4},
        {"precision": "bf16", "gradient_checkpointing": True},
        {"kind": "none"},
        {"kind": "gated_lora", "precision": "bf16"},
    ],
    ids=["fp32", "bf16", "4 bits", "checkpointing", "full", "gates"],
)
def test_formula_and_step_agree_for_whisper_tiny(changes: dict[str, Any]):
    size: dict[str, Any] = {"clips": 6, "clip_s": 6.0}
    found = exact("openai/whisper-tiny", **size, **changes)
    assert formula("openai/whisper-tiny", **size, **changes) == pytest.approx(found.bytes, rel=0.1)


@pytest.mark.parametrize("changes", [{}, {"kind": "none"}], ids=["adapters", "full"])
def test_formula_and_step_agree_where_logits_come_in_parts(changes: dict[str, Any]):
    size: dict[str, Any] = {"clips": 8, "clip_s": 2.0, "tokens": 100}  # 43 million logits
    found = exact("openai/whisper-tiny", **size, **changes)
    assert formula("openai/whisper-tiny", **size, **changes) == pytest.approx(found.bytes, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "checkpoint",
    ["facebook/wav2vec2-base", "Qwen/Qwen3-ASR-0.6B-hf", "MIT/ast-finetuned-audioset-10-10-0.4593", "assets:ctc-nano"],
)
def test_formula_and_step_agree_for_other_families(checkpoint: str, precision: Any):
    found = exact(checkpoint, clip_s=6.0, precision=precision)
    assert formula(checkpoint, clip_s=6.0, precision=precision) == pytest.approx(found.bytes, rel=0.1)


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16", "bits": 4}], ids=["fp32", "4 bits"])
def test_what_is_held_between_steps_is_what_the_step_finds(changes: dict[str, Any]):
    layout = lay_out(TrainingSettings(checkpoint="openai/whisper-tiny", **changes))
    predicted = predict_step(layout, layout.batch(1, 2.0, 5)).static_bytes
    found = exact("openai/whisper-tiny", clips=1, clip_s=2.0, **changes)
    assert found.static_bytes == pytest.approx(predicted, rel=0.002)


def test_more_is_never_less():
    base = formula(NANO)
    assert formula(NANO, clips=5) > base
    assert formula(NANO, clip_s=6.0) > base
    assert formula(NANO, tokens=40) > base
    assert formula(NANO, ranks=RankSettings(rank=16), adapter=AdapterSettings(rank=16)) > base
    assert formula(NANO, gradient_checkpointing=True) < base
    assert formula(NANO, bits=4) < base


def test_a_step_with_checkpointing_takes_less_and_every_byte_has_a_label():
    plain, light = exact(NANO), exact(NANO, gradient_checkpointing=True)
    assert light.static_bytes == plain.static_bytes < light.bytes < plain.bytes
    for peak in (plain, light):
        assert sum(peak.parts.values()) == peak.bytes


def test_an_encoder_that_nothing_trains_in_keeps_nothing():
    frozen = {"ranks": RankSettings(targets=("decoder",)), "adapter": AdapterSettings(stem="frozen")}
    found = exact(NANO, **frozen)
    assert found.saved.get(("encoder", "activations"), 0) < 0.1 * exact(NANO).saved["encoder", "activations"]
    assert formula(NANO, **frozen) == pytest.approx(found.bytes, rel=0.15)


@pytest.mark.parametrize("checkpoint", ["assets:ctc-nano", "assets:qwen3-asr-nano", "assets:ast-nano"])
def test_every_family_runs_a_step(checkpoint: str):
    found = exact(checkpoint, clip_s=3.0)
    assert found.bytes > found.static_bytes > 0


def test_labels_of_a_large_batch_are_numbers():
    """Thirty-two clips of 10 s: more label positions than floats that are kept."""
    assert exact("assets:qwen3-asr-nano", clips=32, clip_s=10.0).bytes > exact("assets:qwen3-asr-nano").bytes


def test_a_window_and_an_adapter_are_refused(tmp_path: Any):
    with pytest.raises(ModelError, match="31 s are longer than the window of assets:whisper-nano"):
        formula(NANO, clip_s=31.0)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(AdapterError, match="already carries an adapter"):
        formula(str(tmp_path))


def test_kernels_of_a_card_need_one():
    layout = lay_out(TrainingSettings(checkpoint=NANO), device="cuda")
    if __import__("torch").cuda.is_available():
        pytest.skip("there is a card")
    with pytest.raises(ConfigError, match="finds only cpu"):
        measure_step(layout, layout.batch(1, 1.0, 3))


@pytest.mark.parametrize("full", [True, False])
def test_weights_in_parts_are_planned_for_one_process(full: bool):
    """Half of what is in the numbered layers, with its moments; with adapters, of what is frozen there."""
    settings = TrainingSettings(checkpoint=NANO, bits=16, kind="none" if full else "lora")
    layout = lay_out(settings)
    parameters = dict(layout.loaded.module.named_parameters())
    cut = [
        value
        for name, value in parameters.items()
        if ".layers." in name and value.ndim > 1 and (full or not value.requires_grad)
    ]
    assert len(cut) == 50
    whole = static_memory(layout)
    halves = static_memory(lay_out(replace(settings, shards=2)))
    for kind, each in (("weights", 4), ("optimizer", 8 if full else 0), ("gradients", 4 if full else 0)):
        saved = sum(row[kind] for row in whole.values()) - sum(row[kind] for row in halves.values())
        assert saved == each * sum(value.numel() for value in cut) / 2, kind


def test_parts_are_not_planned_where_a_run_refuses_them():
    words = {"clip_seconds": [2.0], "batch_seconds": 4.0, "batch_max_clips": 2}
    with pytest.raises(ConfigError, match="--exact runs the step of one process"):
        make_plan(TrainingSettings(checkpoint=NANO, bits=16, shards=2), exact=True, **words)
    with pytest.raises(ConfigError, match="bits=4 packs"):
        make_plan(TrainingSettings(checkpoint=NANO, bits=4, shards=2), **words)


MEASURED = """
import gc, re, torch
from pathlib import Path
from sonotune.planning.memory import convolution_scratch

def status(key):
    return 1024 * int(re.search(rf"^{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1])

def above(work):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    done = work()
    return status("VmHWM") - before, done

conv = torch.nn.Conv1d(160, 160, 3, stride=2, padding=1)
small = conv(torch.randn(1, 160, 100, requires_grad=True))
small.backward(torch.ones_like(small))  # what torch imports at its first backward pass counts for nothing
x = torch.randn(32, 160, 4000, requires_grad=True)
forward, y = above(lambda: conv(x))
gradient = torch.ones_like(y)
backward, _ = above(lambda: y.backward(gradient))
print(forward / (y.nbytes + convolution_scratch(x.nbytes, y.nbytes, groups=1)))
print(backward / (x.nbytes + convolution_scratch(x.nbytes, y.nbytes, groups=1, backward=True)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_convolution_takes_what_is_planned_beside_its_tensors():
    done = subprocess.run(
        [sys.executable, "-c", MEASURED],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert [float(line) for line in done.stdout.split()] == pytest.approx([1, 1], rel=0.1)
