"""What a teacher takes: the bytes that it has when it is opened, in every plan and inspection of a run that learns."""

from __future__ import annotations

from typing import Literal

import pytest

import sonotune
from sonotune.planning.teacher import teacher_memory
from sonotune.training.teacher import open_teacher

NANO = "assets:whisper-nano"
TAUGHT = {"model": "whisper_nano", "training.objective": "distill", "distillation.teacher": NANO}


@pytest.mark.parametrize(("bits", "precision"), [(4, "fp32"), (8, "bf16"), (16, "bf16"), (16, "fp32")])
def test_its_weights_are_those_that_are_held(bits: int, precision: Literal["fp32", "bf16"]):
    predicted = teacher_memory(NANO, bits=bits, precision=precision)
    teacher = open_teacher(NANO, bits=bits, precision=precision, device="cpu")
    assert predicted.bits == bits
    assert predicted.parameters == teacher.to_json()["parameters"]
    code_books = 40 * (4 * 16 + 4 * 256 + 4) if bits == 4 else 0  # which weigh nothing in a larger model
    assert predicted.held_bytes + code_books == pytest.approx(teacher.held_bytes, rel=0.02)


def test_a_plan_counts_it():
    plain = sonotune.plan({"model": "whisper_nano"}, clip_seconds=[2.0])
    taught = sonotune.plan({**TAUGHT, "distillation.teacher_bits": 16}, clip_seconds=[2.0])
    held = teacher_memory(NANO, bits=16, precision=taught.settings.precision).held_bytes
    before, after = (one.stages[0].worst.memory for one in (plain, taught))
    assert after.peak_bytes - before.peak_bytes == held
    assert after.static_bytes - before.static_bytes == held
    assert [row["bytes"] for row in taught.to_json()["components"] if row["name"] == "teacher"] == [held]
    assert taught.loading_bytes > plain.loading_bytes


def test_an_inspection_counts_it():
    assert "teacher" not in sonotune.inspect({"model": "whisper_nano"}).to_json()
    found = sonotune.inspect({**TAUGHT, "distillation.teacher_bits": 4}).to_json()["teacher"]
    assert found["bytes"] == teacher_memory(NANO, bits=4, precision="bf16").held_bytes
    assert (found["checkpoint"], found["bits"]) == (NANO, 4)
