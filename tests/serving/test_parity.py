"""What the serving tool says of an export is compared with what the run is scored on, and a difference is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sonotune.adapters.merge import MergeProof
from sonotune.config.load import load_run_config
from sonotune.data.corpus import CORPUS_SETTINGS
from sonotune.errors import ManifestError
from sonotune.models.base import LoadedModel
from sonotune.runs import read_record
from sonotune.serving import export as export_module
from sonotune.serving import parity as module
from sonotune.serving.export import export
from sonotune.serving.parity import CHECK, ParitySettings, fails_strict, finding_of
from sonotune.serving.recognizer import Recognizer
from sonotune.types import Clip

Adapted = Callable[..., Path]
Digits = tuple[Path, list[Clip]]
Command = Callable[..., tuple[int, str, str]]


def compare_with(checkpoint: Path | str, manifest: Path | None, *, clips: int = 6, **changes: Any) -> ParitySettings:
    """Clips of a manifest, decoded greedily; `changes` are arguments of `Recognizer.open`."""
    data = load_run_config(["model=ctc_nano"]).config.data
    return ParitySettings(
        sources={} if manifest is None else {"eval": str(manifest)},
        corpus=data.model_dump(include=CORPUS_SETTINGS) | {"check": "header", "max_duration_s": 60.0},
        open_scored=lambda: Recognizer.open(str(checkpoint), precision="fp32", device="cpu", **changes),
        decoding={"bootstrap": 100},
        language=changes.get("language"),
        clips=clips,
    )


# --- by construction -------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "only"), [("whisper", True), ("ctc", False), ("qwen3_asr", False)])
def test_a_model_at_home_in_the_whole_window_is_served_as_it_is_scored(
    adapted: Adapted, digits: Digits, tmp_path: Path, family: str, only: bool
):
    folder = adapted(family, language="en")
    settings = compare_with(folder, digits[0], language="en")
    result = export(str(folder), tmp_path / "export", dtype="fp32", adapter_only=only, parity=settings)
    found = json.loads((tmp_path / "export" / "parity.json").read_text("utf-8"))
    assert found == result["parity"]
    assert found["reason"] is None
    assert (found["equal"], found["equal_raw"], found["passed"]) == (1.0, 1.0, True)
    assert found["difference"]["wer"]["value"] == 0.0
    assert (found["difference"]["wer"]["low"], found["difference"]["wer"]["high"]) == (0.0, 0.0)
    assert found["difference"]["wer"]["count"] == found["clips"] == found["asked"] == 6
    assert found["verdict"] == "not shown"  # six equal texts may be chance
    assert "up to 39.3 % of such clips may differ" in found["sentence"]
    assert found["scored"]["wer"]["value"] == found["served"]["wer"]["value"] < 1.5
    assert found["scored"]["cer"]["value"] < 1.0  # the model says something
    assert (found["context"], found["served_context"], found["differing"]) == ("full", "full", [])
    assert found["tool"].startswith("transformers 5")
    assert ("peft" in found["tool"]) is only


def test_a_classifier_is_compared_by_accuracy(adapted: Adapted, digits: Digits, tmp_path: Path):
    labels = ("kick", "one", "two")
    folder = adapted("ast", outputs=labels)
    short = [clip for clip in digits[1] if clip.duration_s < 4.0][:6]
    lines = [{"id": clip.id, "path": str(clip.path), "label": labels[index % 2]} for index, clip in enumerate(short)]
    manifest = tmp_path / "labels.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    settings = compare_with(folder, manifest)
    settings = replace(settings, corpus={**settings.corpus, "root": digits[0].parent})
    found = export(str(folder), tmp_path / "export", adapter_only=True, parity=settings)["parity"]
    assert found["reason"] is None
    assert (found["equal"], found["passed"]) == (1.0, True)
    assert found["difference"]["accuracy"]["value"] == 0.0


def test_a_vocabulary_of_the_data_goes_with_the_adapter(adapted: Adapted, digits: Digits, tmp_path: Path):
    folder = adapted("ctc", outputs=tuple("efghinorstuvwxz"))
    settings = compare_with(folder, digits[0])
    found = export(str(folder), tmp_path / "export", adapter_only=True, parity=settings)["parity"]
    assert found["reason"] is None
    assert (found["equal"], found["equal_raw"]) == (1.0, 1.0)


def damage_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let weights be written that are not those whose merge was proven."""
    honest = export_module.merged_model

    def damaged(*arguments: Any, **settings: Any) -> tuple[LoadedModel, MergeProof | None]:
        merged, proof = honest(*arguments, **settings)
        with torch.no_grad():
            merged.module.model.encoder.layer_norm.weight.zero_()
        return merged, proof

    monkeypatch.setattr(export_module, "merged_model", damaged)


# --- what cannot be compared -----------------------------------------------------------------------


def test_an_export_outlives_a_tool_that_fails(
    adapted: Adapted, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fails(family: str, request: Any) -> Any:
        raise KeyError("no such thing")

    monkeypatch.setattr(module, "recognize_served", fails)
    folder = adapted("ctc")
    found = export(str(folder), tmp_path / "export", parity=compare_with(folder, digits[0]))["parity"]
    assert (found["equal"], found["passed"], found["verdict"]) == (None, False, None)
    assert fails_strict(found)
    assert "failed: KeyError: 'no such thing'" in found["reason"]
    assert (tmp_path / "export" / "model.safetensors").is_file()
    assert json.loads((tmp_path / "export" / "parity.json").read_text("utf-8")) == found
    assert finding_of(found).severity == "warning"


@pytest.mark.parametrize(
    ("named", "reason"), [(None, "no development clips are known"), ("gone.jsonl", "gone.jsonl")], ids=["none", "gone"]
)
def test_without_clips_the_reason_is_told(adapted: Adapted, tmp_path: Path, named: str | None, reason: str):
    folder = adapted("ctc")
    settings = compare_with(folder, None if named is None else tmp_path / named)
    found = export(str(folder), tmp_path / "export", parity=settings)["parity"]
    assert found["equal"] is None
    assert reason in found["reason"]


def test_what_no_other_tool_loads_is_said(tmp_path: Path, digits: Digits):
    settings = replace(
        compare_with("assets:speech-llm-nano", digits[0]),
        open_scored=lambda: pytest.fail("nothing needs to be recognised"),
    )
    found = module.check_parity("assets:speech-llm-nano", tmp_path, settings, adapter=False)
    assert found["equal"] is None
    assert found["reason"].startswith("no other tool loads a model of the family speech_llm")


def test_clips_beyond_the_window_are_left_out_and_counted(adapted: Adapted, digits: Digits, tmp_path: Path):
    few = digits[1][:3]
    lines = [{"id": clip.id, "path": str(clip.path), "text": clip.text} for clip in few]
    for name, seconds in (("long", 31.0), ("longer", 32.0)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(round(16_000 * seconds), dtype=np.float32), 16_000)
        lines.append({"id": name, "path": str(tmp_path / f"{name}.wav"), "text": "one"})
    manifest = tmp_path / "clips.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    folder = adapted("ctc")  # a model without a window of its own
    settings = compare_with(folder, manifest)
    settings = replace(settings, corpus={**settings.corpus, "allow_outside_root": True})
    found = export(str(folder), tmp_path / "export", dtype="fp32", parity=settings)["parity"]
    assert (found["clips"], found["left_out"]) == (3, 2)
    wer = found["difference"]["wer"]  # too few clips for an interval
    assert (wer["value"], wer["low"], wer["high"], wer["count"]) == (0.0, None, None, 3)
    assert found["passed"]
    assert finding_of(found).severity == "note"
    assert found["verdict"] == "not shown"
    assert not fails_strict(found), "three equal clips show little, and nothing that differs"
    assert not fails_strict(found | {"verdict": "shown"})
    assert fails_strict(found | {"verdict": "differs"})


def test_clips_are_drawn_by_the_seed(digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recognizer = Recognizer.open("assets:ctc-nano")
    settings = replace(compare_with("assets:ctc-nano", digits[0]), open_scored=lambda: recognizer)
    asked: list[str] = []

    def evaluate(self: Recognizer, clips: Sequence[Clip], **_: Any) -> Any:
        asked[:] = [clip.id for clip in clips]
        raise ManifestError("the clips are known")

    monkeypatch.setattr(Recognizer, "evaluate", evaluate)

    def drawn(seed: int, clips: int = 5) -> list[str]:
        found = module.check_parity(
            "assets:ctc-nano", tmp_path, replace(settings, seed=seed, clips=clips), adapter=False
        )
        assert found["reason"] == "the clips are known"
        return list(asked)

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert len(drawn(0)) == len(set(drawn(0))) == 5
    assert drawn(0, clips=1000) == [clip.id for clip in digits[1]]


# --- the command -----------------------------------------------------------------------------------


def test_a_run_is_compared_on_its_own_development_clips(short_run: Path, tmp_path: Path, sonotune: Command):
    run = Path(shutil.copytree(short_run, tmp_path / "run"))
    code, out, err = sonotune("export", str(run), str(tmp_path / "out"), "--strict", "--json", "--parity-clips", "5")
    assert code == 0, err
    found = json.loads(out)["parity"]
    assert (found["equal"], found["passed"], found["context"], found["clips"]) == (1.0, True, "full", 5)
    assert "WARNING" not in err
    [finding] = [finding for finding in read_record(run).findings if finding.check == CHECK]
    assert (finding.severity, finding.measured) == ("note", 0.0)
    page = (run / "report.html").read_text("utf-8")
    assert "Export, served − scored" in page
    assert "No difference was found, and parity is not shown; 1 allowed" in page
    assert "What is served is not what was scored" not in page
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    sentence = found["sentence"]
    assert sentence.startswith("No difference was found, and parity is not shown: served by transformers 5")
    assert "on the same 5 clips: +0.0 points, 100 % of the answers equal." in sentence
    assert "By the exact 95 % bound up to 45.1 % of such clips may differ" in sentence
    assert "where 1 % is allowed; about 299 clips like these would tell." in sentence
    assert sentence == finding.message
    assert sentence in card
    assert sentence in page
    code, out, err = sonotune("export", str(run), str(tmp_path / "few"), "--strict", "--parity-clips", "1000")
    assert code == 0  # too few clips to show it, and nothing that differs
    assert "parity   No difference was found, and parity is not shown: " in out
    assert "WARNING" not in err


def test_a_difference_is_loud_and_with_strict_an_error(
    short_run: Path,
    tmp_path: Path,
    sonotune: Command,
    monkeypatch: pytest.MonkeyPatch,
):
    run = Path(shutil.copytree(short_run, tmp_path / "run"))
    damage_exports(monkeypatch)
    code, out, err = sonotune("export", str(run), str(tmp_path / "out"), "--json", "--parity-clips", "5", "--strict")
    assert code == 4
    found = json.loads(out)["parity"]
    assert not found["passed"]
    assert found["equal"] < 1.0
    assert found["difference"]["wer"]["value"] > found["tolerance"] == 0.01
    assert {"id", "reference", "scored", "served"} == set(found["differing"][0])
    assert found["verdict"] == "differs"
    assert f"WARNING: {found['sentence']}" in err
    assert found["sentence"].startswith("What is served is not what was scored: ")
    assert (tmp_path / "out" / "parity.json").is_file()  # told, and kept to be looked at
    [finding] = [finding for finding in read_record(run).findings if finding.check == CHECK]
    assert (finding.severity, finding.unit) == ("warning", "points")
    assert finding.measured == pytest.approx(100 * found["difference"]["wer"]["value"], abs=0.01)
    page = (run / "report.html").read_text("utf-8")
    assert page.index("What is served is not what was scored") < page.index('id="scores"')
    assert found["sentence"] in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_a_plain_model_has_no_clips_unless_they_are_named(tmp_path: Path, digits: Digits, sonotune: Command):
    words = ("export", "assets:ctc-nano", str(tmp_path / "out"), "--json", "--overwrite")
    code, out, err = sonotune(*words)
    assert code == 0
    assert json.loads(out)["parity"]["equal"] is None
    assert "parity of the export was not checked: no development clips are known" in err
    assert sonotune(*words, "--strict")[0] == 4  # what was not shown is not taken for granted
    code, out, err = sonotune(*words, "--parity", str(digits[0]), "--parity-clips", "5", "--strict")
    assert code == 0, err
    assert json.loads(out)["parity"]["clips"] == 5
    code, out, _ = sonotune(*words, "--no-parity")
    assert code == 0
    assert "parity" not in json.loads(out)
    assert not (tmp_path / "out" / "parity.json").exists()
    code, _, err = sonotune(*words, "--no-parity", "--strict")
    assert code == 2
    assert "--no-parity" in err
