"""The commands of distillation: `distill` is `train`, and every refusal ends with exit code 2 and no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sonotune.cli import main
from sonotune.config.plain_yaml import parse_yaml

NANO = "assets:whisper-nano"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(words)
    found = capsys.readouterr()
    return int(ended.value.code or 0), found.out, found.err


def test_distill_is_train_with_a_teacher(capsys: pytest.CaptureFixture[str]):
    common = ("model=whisper_nano", "data=quickstart", "--dump-config")
    teacher = f"distillation.teacher={NANO}"
    code, alias, _ = said(capsys, "distill", "teacher=whisper_nano", *common)
    assert code == 0
    for words in (
        ("distill", f"teacher={NANO}", *common),
        ("distill", teacher, "training.objective=distill", *common),
        ("train", teacher, "training.objective=distill", *common),
    ):
        assert said(capsys, *words)[:2] == (0, alias)
    settings = parse_yaml(alias)
    assert isinstance(settings, dict)
    assert settings["training"]["objective"] == "distill"
    assert settings["distillation"]["teacher"] == NANO


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("distill", "model=whisper_nano", "data=quickstart"), "distillation.teacher"),
        (("distill", "teacher=", "model=whisper_nano", "data=quickstart"), "distillation.teacher"),
        (
            ("distill", "teacher=assets:ast-nano", "model=whisper_nano", "data=quickstart", "run.dir=run"),
            "distillation.teacher=assets:ast-nano can classify",
        ),
        (
            ("distill", "teacher=assets:qwen3-asr-nano", "model=whisper_nano", "data=quickstart", "run.dir=run"),
            "is of the family qwen3_asr, and the model of whisper",
        ),
        (("prune", NANO, "student", "--decoder-layers", "9"), "--decoder-layers is 9"),
        (("prune", NANO, "student"), "nothing is to go"),
        (("data", "label", "assets:quickstart/eval.jsonl", "out.jsonl", "--model", "assets:ast-nano"), "can classify"),
        (("data", "label", "none.jsonl", "out.jsonl", "--model", NANO), "none.jsonl"),
        (("data", "label", "assets:quickstart/eval.jsonl", "out.jsonl", "--model", NANO, "--bits", "5"), "--bits 5"),
    ],
)
def test_what_cannot_be_ends_with_2(
    words: tuple[str, ...],
    told: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    code, _, err = said(capsys, *words)
    assert code == 2
    assert told in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_prune_and_label_say_what_they_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    code, out, _ = said(capsys, "prune", NANO, "student", "--decoder-layers", "1", "--json")
    made = json.loads(out)
    assert (code, made["model"], made["layers"]["decoder"]) == (0, "student", [1])
    lines = Path("few.jsonl")
    code, _, _ = said(capsys, "data", "import", "assets:quickstart/eval.jsonl", "few.jsonl")
    assert code == 0
    lines.write_text("".join(lines.read_text("utf-8").splitlines(keepends=True)[:3]), "utf-8")
    words = ("data", "label", "few.jsonl", "out.jsonl", "--model", NANO, "--min-logprob", "-20", "--json")
    code, out, _ = said(capsys, *words)
    made = json.loads(out)
    assert (code, made["clips"] + made["dropped"], made["teacher"]["checkpoint"]) == (0, 3, NANO)
