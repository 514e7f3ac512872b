"""The lines of a model card are run as they stand, from the card's folder."""

from __future__ import annotations

import contextlib
import io
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile

from sonotune.adapters.metadata import read_metadata
from sonotune.audio.io import read
from sonotune.cli.usage import usage_in
from sonotune.reports.card import build_card
from sonotune.serving.export import export
from sonotune.types import Clip, RunRecord

Command = Callable[..., tuple[int, str, str]]
CLASSES = ("kick", "one", "two")
MERGED: dict[str, Any] = {}
ADAPTER: dict[str, Any] = {"adapter_only": True}
PLAIN: dict[str, Any] = {"adapter_only": True, "plain": True}
ROWS = {
    "whisper": ("whisper", {"language": "en"}, MERGED),
    "whisper-adapter": ("whisper", {"language": "en"}, ADAPTER),
    "whisper-plain": ("whisper", {"language": "en"}, PLAIN),
    "ctc": ("ctc", {}, MERGED),
    "ctc-adapter": ("ctc", {"outputs": tuple("efghinorstuvwxz")}, ADAPTER),
    "ctc-plain": ("ctc", {"outputs": tuple("efghinorstuvwxz")}, PLAIN),
    "qwen3_asr": ("qwen3_asr", {"language": "en"}, MERGED),
    "qwen3_asr-hebrew": ("qwen3_asr", {"language": "he"}, ADAPTER),
    "ast": ("ast", {}, MERGED),
    "ast-adapter": ("ast", {"outputs": CLASSES}, ADAPTER),
}


def record_of(family: str, base: str, **model: Any) -> RunRecord:
    return RunRecord(
        schema=1,
        run_id="card",
        status="finished",
        config={"model": model, "data": {}},
        config_origin={},
        config_digest="",
        data_digest={},
        code={},
        environment={},
        model={"checkpoint": base, "family": family},
        ranks={},
        findings=(),
        scores={},
        stages=(),
        choices={},
        peak_memory_bytes=0,
        seconds=0.0,
    )


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", card, flags=re.DOTALL)


def write_speech(folder: Path, clip: Clip) -> None:
    soundfile.write(folder / "speech.wav", read(clip.path, sample_rate_hz=16_000), 16_000, subtype="FLOAT")


@pytest.mark.parametrize("row", ROWS)
def test_the_lines_print_what_the_model_is_scored_on(
    row: str,
    adapted: Callable[..., Path],
    digits: tuple[Path, list[Clip]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sonotune: Command,
):
    family, settings, form = ROWS[row]
    folder, place = adapted(family, **settings), tmp_path / "out"
    base = str(read_metadata(folder)["checkpoint"])
    export(str(folder), place, dtype="fp32", **form)
    kind: Any = "adapter" if form else "model"
    record = record_of(family, base, language=settings.get("language"))
    card = build_card(record, kind=kind, task="transcribe", usage=usage_in(place, record, kind))
    write_speech(place, digits[1][2])
    monkeypatch.chdir(place)
    [python], [shell] = blocks(card, "python"), blocks(card, "bash")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 asks transformers 5 by an old name
        exec(compile(python, "card", "exec"), {})  # noqa: S102  (that is what is tested)
    code, out, err = sonotune(*shell.split()[1:])
    assert code == 0, err
    says = out.rstrip("\n").split("\t")[1]
    assert printed.getvalue().strip() == says
    assert says


def test_of_a_model_that_no_other_tool_loads_the_card_says_so(
    digits: tuple[Path, list[Clip]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sonotune: Command
):
    export("assets:speech-llm-nano", tmp_path / "out", dtype="fp32")
    record = record_of("speech_llm", "assets:speech-llm-nano")
    card = build_card(record, kind="model", task="transcribe", usage=usage_in(tmp_path / "out", record, "model"))
    assert not blocks(card, "python")
    assert "No other tool loads a model of the family `speech_llm`." in card
    write_speech(tmp_path / "out", digits[1][2])
    monkeypatch.chdir(tmp_path / "out")
    [shell] = blocks(card, "bash")
    code, out, err = sonotune(*shell.split()[1:])
    assert code == 0, err
    assert out.startswith("speech.wav\t")


def test_where_the_base_is_a_folder_its_name_stands_in_the_lines_and_its_place_does_not(tmp_path: Path):
    record = record_of("whisper", str(tmp_path / 'my "base"'), language="en")
    card = build_card(record, kind="adapter", task="transcribe")
    [python] = blocks(card, "python")
    assert r'BASE = "my \"base\""  # the folder of the base model' in python
    assert str(tmp_path) not in card
    assert 'Its base is a folder called `my "base"`, on no hub' in card


def test_the_card_says_which_tools_read_the_form(adapted: Callable[..., Path], tmp_path: Path):
    folder = adapted("whisper", language="en")
    entries = folder / "adapter_config.json"
    patterned = json.loads(entries.read_text("utf-8")) | {"alpha_pattern": {"^model.decoder": 3.0}}
    record = record_of("whisper", "assets:whisper-nano", language="en")
    export(str(folder), tmp_path / "plain", adapter_only=True, plain=True)
    usage = usage_in(tmp_path / "plain", record, "adapter")
    card = build_card(record, kind="adapter", task="transcribe", usage=usage)
    assert "vllm serve BASE --enable-lora --max-lora-rank 8 --lora-modules tuned=." in card
    assert "Its base is `assets:whisper-nano`, which is packaged with sonotune and on no hub." in card
    assert "The model takes windows of 15 s." in card  # as its preprocessor_config.json says
    entries.write_text(json.dumps(patterned), "utf-8")
    card = build_card(record, kind="adapter", task="transcribe", usage=usage_in(folder, record, "adapter"))
    assert "**no**: they read one rank and one scale for all modules, and this adapter has `alpha_pattern`." in card
    assert "vllm serve" not in card
    merged = build_card(record, kind="model", task="transcribe")
    assert "ct2-transformers-converter" in merged
    assert "The model takes windows of 30 s." in merged


def test_the_card_of_a_plain_adapter_names_the_copy_of_the_base(adapted: Callable[..., Path], tmp_path: Path):
    folder = adapted("ctc", outputs=tuple("efghinorstuvwxz"))
    export(str(folder), tmp_path / "plain", adapter_only=True, plain=True)
    record = record_of("ctc", "facebook/wav2vec2-base")
    usage = usage_in(tmp_path / "plain", record, "adapter")
    card = build_card(record, kind="adapter", task="transcribe", usage=usage)
    assert "Its base is the folder `base` beside this card" in card
    assert 'BASE = "./base"' in card
    assert str(tmp_path) not in card
