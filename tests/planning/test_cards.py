"""Cards by name and by size as sold, and what a run needs of one beside its tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sonotune.cli import main
from sonotune.errors import ConfigError
from sonotune.planning.cards import CARDS, CONTEXT_BYTES, FRAGMENTATION, find_card, left_for_tensors, needed_bytes
from sonotune.planning.cost import read_throughput

MIB = 2**20


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(["plan", *(() if words[0].startswith("model=") else ("model=whisper_nano",)), *words])
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out + said.err


@pytest.mark.parametrize(
    ("text", "mib", "gb"),
    [
        ("RTX 4090", 24_564, 24),
        ("nvidia geforce rtx4090", 24_564, 24),
        ("4090", 24_564, 24),  # and no card of 4090 GB
        ("NVIDIA A100-80GB", 81_920, 80),
        ("a100 40 gb", 40_960, 40),
        ("RTX 4060 Ti 16GB", 16_380, 16),
        ("Tesla T4", 15_360, 16),
        ("NVIDIA A100-SXM4-80GB", 81_920, 80),  # as nvidia-smi writes it
        ("NVIDIA H100 80GB HBM3", 81_559, 80),
        ("A100 80G", 81_920, 80),
        ("RTX 4090 16GB", 15_360, 16),  # that of a laptop: another size than the table has
        ("8GB", 8_188, 8),
        ("8", 8_188, 8),
        ("24 GB", 23_028, 24),  # the least that a card sold as 24 GB has
        ("6GB", 5_760, 6),
        ("20GiB", 20_480, 20),
    ],
)
def test_a_card_is_found_by_name_or_by_size(text: str, mib: int, gb: int):
    card = find_card(text)
    assert (card.memory_bytes, card.sold_gb) == (mib * MIB, gb)
    assert f"{mib:,} MiB ({mib * MIB / 1e9:.2f} decimal GB)" in card.told()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A100", "--gpu 'A100 40GB' or --gpu 'A100 80GB'"),
        ("RTX 4909", "did you mean"),
        ("toaster", "Known are RTX 3060"),
        ("", "no card that is known"),
        ("0GB", "no card that is known"),
        ("3000GB", "larger than any card: the largest that is known here is the H200 with 141 GB"),
    ],
)
def test_what_is_no_card_is_refused_with_what_there_is(text: str, said: str):
    with pytest.raises(ConfigError, match=said):
        find_card(text)


def test_no_card_can_use_more_than_its_size_as_sold_and_none_much_less():
    for name, sizes in CARDS.items():
        for gb, mib in sizes.items():
            assert 0.93 * 1024 * gb < mib <= 1024 * gb, name


def test_what_is_needed_and_what_is_left_agree():
    assert needed_bytes(1000 * MIB, "cuda") == round(1000 * MIB * (1 + FRAGMENTATION)) + CONTEXT_BYTES
    assert needed_bytes(1000 * MIB, "cpu") == 1000 * MIB
    for device in ("cpu", "cuda"):
        room = left_for_tensors(8 * 2**30, device)
        assert needed_bytes(room, device) <= 8 * 2**30 < needed_bytes(room + 100, device)


def test_a_plan_is_for_the_card_that_is_named_on_a_machine_without_one(capsys: pytest.CaptureFixture[str]):
    code, said = plan(capsys, "--gpu", "RTX 4090")
    assert code == 0
    assert "assets:whisper-nano on cuda" in said
    assert "card     the RTX 4090, sold as 24 GB: 24,564 MiB" in said
    assert "verdict  fits with 9" in said
    assert "MiB for the CUDA context" in said
    assert "try" not in said


def test_a_run_that_does_not_fit_is_told_what_to_change(capsys: pytest.CaptureFixture[str]):
    words = (
        "model=whisper_small",
        "training.batch_seconds=600",
        "training.batch_max_clips=512",
        "--clip-seconds",
        "30",
    )
    code, said = plan(capsys, *words, "--gpu", "8GB")
    assert code == 0, said
    assert "verdict  does not fit: needs" in said
    assert "times what there is" in said.splitlines()[-1]
    tried = next(line for line in said.splitlines() if line.startswith("  try training.batch_seconds="))
    setting = tried.split()[1].rstrip(",")
    _, said = plan(capsys, words[0], setting, *words[2:], "--gpu", "8GB")
    assert "verdict  fits" in said


@pytest.mark.parametrize("words", [("--memory", "8GB"), ("--device", "cpu")])
def test_a_card_has_its_own_memory_and_device(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]):
    code, said = plan(capsys, "--gpu", "8GB", *words)
    assert code == 2
    assert "--gpu names a card" in said


def test_json_says_what_was_counted(capsys: pytest.CaptureFixture[str]):
    code, said = plan(capsys, "--gpu", "8GB", "--json")
    body = json.loads(said[said.index("{") :])
    assert code == 0
    assert body["card"] == {"name": "a card", "sold_gb": 8}
    assert body["needed_bytes"] == needed_bytes(body["peak_bytes"], "cuda")
    assert body["left"] == pytest.approx(1 - body["needed_bytes"] / (8_188 * MIB))
    assert body["fits"] is True
    assert body["advice"] == []


def test_a_memory_is_told_in_both_kinds_of_unit_and_a_bare_number_says_how_it_was_read(
    capsys: pytest.CaptureFixture[str],
):
    _, said = plan(capsys, "--memory", "40", "--device", "cpu")
    assert "memory   40 is read as GiB: 40.00 GiB, which are 42.95 decimal GB" in said
    _, said = plan(capsys, "--memory", "40MB", "--device", "cpu")
    assert "memory   38.1 MiB, which are 40.0 decimal MB" in said
    assert said.splitlines()[-1].startswith("verdict  does not fit: needs ")
    assert "counted  tensors alone" in said


def test_a_throughput_of_another_model_is_refused(tmp_path: Path):
    steps = [{"kind": "step", "step": step, "audio_s": 10.0, "seconds": 2.0} for step in (1, 2)]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps), "utf-8")
    record: dict[str, Any] = {"environment": {"world_size": 1}, "model": {"checkpoint": "assets:whisper-nano"}}
    (tmp_path / "run.json").write_text(json.dumps(record), "utf-8")
    assert read_throughput(str(tmp_path), checkpoint="assets:whisper-nano")[0] == 5.0
    assert read_throughput(str(tmp_path))[0] == 5.0
    assert read_throughput("7", checkpoint="openai/whisper-small")[0] == 7.0
    with pytest.raises(ConfigError, match=r"measured on assets:whisper-nano, and the plan is for openai/whisper-small"):
        read_throughput(str(tmp_path), checkpoint="openai/whisper-small")
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "run.json").write_text(json.dumps(record | {"model": {"checkpoint": str(folder)}}), "utf-8")
    assert read_throughput(str(tmp_path), checkpoint=f"{folder}/../model")[0] == 5.0
