"""Texts of a model in the place of transcripts: resumed after a kill, kept by the model's digest, judged by limits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sonotune.audit.repair_manifest import RepairRequest
from sonotune.data.manifest import read_manifest, write_manifest
from sonotune.errors import ConfigError, ManifestError
from sonotune.loading import model_digest, open_model
from sonotune.registry import resolve_asset
from sonotune.serving import pseudo_labels
from sonotune.serving.pseudo_labels import LabelLimits, label_manifest, reasons_against
from sonotune.types import Clip

NANO = "assets:whisper-nano"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clips, half of them without a transcript, and one of silence."""
    folder = tmp_path_factory.mktemp("source")
    packaged = resolve_asset("assets:quickstart")
    clips = read_manifest(packaged / "train.jsonl")[:10]
    lines = []
    for number, clip in enumerate(clips):
        shutil.copy(clip.path, folder / clip.path.name)
        line = {"id": clip.id, "path": clip.path.name, "language": "en", **({"text": clip.text} if number % 2 else {})}
        lines.append(json.dumps(line) + "\n")
    soundfile.write(folder / "silent.wav", np.zeros(16_000), 16_000)
    lines.append(json.dumps({"id": "silent", "path": "silent.wav", "language": "en"}) + "\n")
    (folder / "clips.jsonl").write_text("".join(lines), "utf-8")
    return folder / "clips.jsonl"


def request(source: Path, out: Path, model: str = NANO, **how: Any) -> RepairRequest:
    return RepairRequest.of(source, out, model=model, **how)


@pytest.fixture(scope="module")
def labelled(source: Path) -> Path:
    """Where ten texts are kept; tests that change something work on a copy."""
    out = source.parent / "labelled.jsonl"
    made = label_manifest(request(source, out), LabelLimits(min_logprob=-20.0)).body
    assert (made["clips"], made["reused"]) == (10, 0)
    return out


def test_texts_take_the_place_of_transcripts(source: Path, labelled: Path):
    given = {clip.id: clip for clip in read_manifest(source)}
    digest = model_digest(NANO, open_model(NANO).loaded)
    clips = read_manifest(labelled)
    assert len(clips) == 10
    for clip in clips:
        assert clip.text
        assert clip.extra["label_teacher"] == digest
        assert float(clip.extra["label_logprob"]) < 0
        assert clip.extra.get("given_text") == given[clip.id].text
        assert clip.path == given[clip.id].path
    right = sum(clip.text == clip.extra["given_text"] for clip in clips if "given_text" in clip.extra)
    assert right >= 1  # it is the model that writes, and it knows these words
    [silent] = read_manifest(labelled.with_name("labelled.dropped.jsonl"))
    assert (silent.id, silent.extra["label_reasons"].split()[0]) == ("silent", "no_speech")


def test_a_killed_run_goes_on(source: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pseudo_labels, "_UNIT", 4)
    out, asked = tmp_path / "out.jsonl", list[int]()
    written = pseudo_labels._Teacher.write

    def write(self: Any, clips: Any) -> Any:
        asked.append(len(clips))
        if len(asked) == 2:
            raise SystemError("the power went")
        return written(self, clips)

    monkeypatch.setattr(pseudo_labels._Teacher, "write", write)
    with pytest.raises(SystemError):
        label_manifest(request(source, out), LabelLimits(min_logprob=-20.0))
    kept = tmp_path / "out.labels.jsonl"
    with kept.open("ab") as file:  # what a kill in the middle of a write leaves
        file.write(b'{"clips": [{"key": "a')
    assert not out.exists()
    made = label_manifest(request(source, out), LabelLimits(min_logprob=-20.0)).body
    assert asked == [4, 4, 4, 3]
    assert made["reused"] == 4
    texts = [[(clip.id, clip.text) for clip in read_manifest(one)] for one in (out, labelled)]
    assert texts[0] == texts[1]
    assert all(json.loads(line) for line in kept.read_text("utf-8").splitlines())


def test_other_limits_cost_nothing(source: Path, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("labelled.jsonl", "labelled.labels.jsonl"):
        shutil.copy(labelled.with_name(name), tmp_path / name)
    monkeypatch.setattr(pseudo_labels._Teacher, "write", lambda *_: pytest.fail("it writes again"))
    logprobs = sorted(float(clip.extra["label_logprob"]) for clip in read_manifest(labelled))
    middle = (logprobs[4] + logprobs[5]) / 2
    made = label_manifest(request(source, tmp_path / "labelled.jsonl"), LabelLimits(min_logprob=middle)).body
    assert (made["clips"], made["dropped"], made["reused"]) == (5, 6, 11)
    assert made["reasons"] == {"improbable": 6, "no_speech": 1}
    with pytest.raises(ManifestError, match="no text of assets:whisper-nano on 11 clips passes: improbable 11"):
        label_manifest(request(source, tmp_path / "labelled.jsonl"), LabelLimits(min_logprob=0.0))


def test_texts_of_another_teacher_are_refused(source: Path, labelled: Path, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(resolve_asset(NANO), other)
    settings = json.loads((other / "generation_config.json").read_text("utf-8"))
    (other / "generation_config.json").write_text(json.dumps({**settings, "suppress_tokens": [7]}), "utf-8")
    shutil.copy(labelled.with_name("labelled.labels.jsonl"), tmp_path / "out.labels.jsonl")
    with pytest.raises(ManifestError, match=r"texts of another teacher, assets:whisper-nano.*Remove it"):
        label_manifest(request(source, tmp_path / "out.jsonl", str(other)))
    with pytest.raises(ManifestError, match="with other settings: beam_size 1"):
        label_manifest(request(source, tmp_path / "out.jsonl"), beam_size=2)
    (tmp_path / "out.labels.jsonl").write_text('{"teacher": 3}\n', "utf-8")
    with pytest.raises(ManifestError, match="Remove it"):
        label_manifest(request(source, tmp_path / "out.jsonl"))


def test_who_cannot_write_these_texts_is_refused(source: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="assets:ast-nano can classify"):
        label_manifest(request(source, tmp_path / "out.jsonl", "assets:ast-nano"))
    swahili = tmp_path / "swahili.jsonl"
    write_manifest(swahili, [Clip(id="a", path=source.parent / "silent.wav", duration_s=1.0, language="sw")])
    with pytest.raises(ConfigError, match="does not know the language 'sw', which 1 clip is in"):
        label_manifest(request(swahili, tmp_path / "out.jsonl"))
    with pytest.raises(ManifestError, match="would be lost"):
        label_manifest(request(source, source))
    assert not (tmp_path / "out.labels.jsonl").exists()


def row(**changes: Any) -> dict[str, Any]:
    plain = {"text": "one two three", "logprob": -0.2, "cut": False, "finite": True, "speech_s": 1.5}
    return {**plain, **changes}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"logprob": -1.5}, ["improbable"]),
        ({"text": "thank you " * 40}, ["repetitive", "too_fast"]),
        ({"text": "one two three four five six seven eight", "speech_s": 0.5}, ["too_fast"]),
        ({"text": " "}, ["empty"]),
        ({"speech_s": 0.0}, ["no_speech"]),
        ({"speech_s": 0.0, "text": ""}, ["no_speech", "empty"]),
        ({"speech_s": None}, ["unreadable"]),
        ({"finite": False, "text": ""}, ["not_finite"]),
        ({"cut": True, "logprob": None}, ["cut", "improbable"]),
    ],
)
def test_why_a_text_is_left_out(changes: dict[str, Any], found: list[str]):
    clip = Clip(id="a", path=Path("a.wav"), duration_s=2.0)
    assert reasons_against(clip, row(**changes), LabelLimits()) == found
    off = LabelLimits(min_logprob=None, max_compression=None, max_characters_per_second=None)
    assert not {"improbable", "repetitive", "too_fast"}.intersection(reasons_against(clip, row(**changes), off))
