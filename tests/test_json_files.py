"""Every JSON file that is read back: whatever it holds, the answer is an error of the project that names the file."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pydantic import TypeAdapter

from sonotune import json_files
from sonotune.adapters.metadata import peft_entries, read_entries, use_of
from sonotune.adapters.ranks.choose import read_components
from sonotune.adapters.ranks.plan import Target, plan_from_json
from sonotune.cli import main
from sonotune.cli.train import _run_lines
from sonotune.cli.usage import read_model_entries, read_processor_entries
from sonotune.errors import (
    AdapterError,
    CheckpointError,
    ConfigError,
    ModelError,
    RunDirectoryError,
    SonotuneError,
)
from sonotune.json_files import OBJECT, Count, Number, read_json, read_json_lines
from sonotune.models.checkpoints import read_config
from sonotune.models.weight_files import check_weight_files
from sonotune.planning.cost import read_throughput
from sonotune.reports.card import build_card, read_parity
from sonotune.reports.rank_heatmap import plan_pictures, read_plan
from sonotune.runs import read_events, read_predictions, read_record
from sonotune.sweeps.ablation import read_ablation
from sonotune.training import checkpoint

SCORE = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 9, "unit": "fraction", "better": "lower", "detail": {}}
RECORD: dict[str, Any] = {
    "schema": 1,
    "run_id": "run",
    "status": "finished",
    "config": {
        "model": {"language": "en", "context": "cut", "full_context_share": 0.0},
        "data": {"text_scoring": None, "min_duration_s": 0.1, "max_duration_s": 30.0, "multi_label": False},
        "evaluation": {"duration_edges_s": [2.0, 5.0, "inf"]},
    },
    "config_origin": {"model.language": "command line"},
    "config_digest": "d",
    "data_digest": {"train": "t"},
    "code": {"version": "0", "commit": "c"},
    "environment": {"packages": {"torch": "2"}, "world_size": 1},
    "model": {
        "family": "whisper",
        "checkpoint": "assets:whisper-nano",
        "revision": None,
        "language": "en",
        "task": "transcribe",
        "context": "cut",
        "trained_contexts": ["cut"],
        "thinning": {"margin": 50, "spacing": 30},
        "components": {"encoder": {"parameters": 10, "trainable": 5, "bytes": 40}},
    },
    "ranks": {"a.b": 4},
    "findings": [{"check": "c", "severity": "note", "message": "m", "clip_ids": ["a"], "measured": 1.0, "limit": 2.0}],
    "scores": {"before": {"wer": SCORE}, "after": {"wer": SCORE}},
    "stages": [{"name": "train", "groups": [{"name": "adapters", "parameters": 5, "tensors": ["t"]}]}],
    "choices": {"quantization.bits": "16: small"},
    "peak_memory_bytes": 1,
    "seconds": 1.0,
    "energy_joules": None,
}
SITES = [Target(name="a.fc", outputs=8, inputs=8, group="encoder", kind="fc")]
PARITY = {
    "equal": 1.0,
    "difference": {"wer": {"value": 0.0, "low": None, "high": None}},
    "scored": {"wer": SCORE},
    "served": {"wer": SCORE},
    "passed": True,
    "sentence": "Parity is shown.",
    "tolerance": 0.01,
    "context": "cut",
    "tool": "transformers",
    "clips": 3,
}


class Kind(NamedTuple):
    """A file that is read back: its name, what it may hold, who reads it, and the error of what it may not."""

    name: str
    holds: Any
    read: Callable[[Path], object]
    error: type[SonotuneError]


def use_record(path: Path) -> None:
    record = read_record(path)
    build_card(record, kind="adapter", task="transcribe")
    _run_lines(record, path.parent)
    use_of(str(path.parent))


def use_plan(path: Path) -> None:
    plan_from_json(read_json(path, OBJECT, error=AdapterError, do=""), SITES, where=str(path))
    plan_pictures(read_plan(path))


def read_log(path: Path) -> list[Any]:
    return list(read_events(path))


KINDS = [
    Kind("run.json", RECORD, use_record, RunDirectoryError),
    Kind(
        "events.jsonl",
        {"kind": "step", "step": 1, "audio_s": 3.0, "seconds": 1.0, "scores": {"wer": SCORE}},
        read_log,
        RunDirectoryError,
    ),
    Kind("events.jsonl", {"audio_s": 3.0, "seconds": 1.0}, lambda path: read_throughput(str(path.parent)), ConfigError),
    Kind(
        "test.jsonl",
        {"id": "a", "duration_s": 1.0, "speaker": "s", "reference": "x", "labels": ["a"], "decided": [], "scores": {}},
        read_predictions,
        RunDirectoryError,
    ),
    Kind(
        "sonotune.json",
        {
            "schema": 1,
            "adapter": "lora",
            "family": "whisper",
            "checkpoint": None,
            "revision": "r",
            "context": "dynamic",
            "thinning": {"margin": 50, "spacing": 30},
            "trained_contexts": ["cut", "full"],
            "bits": 4,
            "double": True,
            "quantization_skip": ["head"],
            "outputs": ["a"],
            "language": "en",
            "text_scoring": None,
            "min_duration_s": 0.1,
            "max_duration_s": None,
            "multi_label": False,
        },
        read_entries,
        AdapterError,
    ),
    Kind(
        "adapter_config.json",
        {"base_model_name_or_path": "m", "target_modules": ["q"]},
        lambda path: peft_entries(path.parent),
        AdapterError,
    ),
    Kind(
        "generation_config.json",
        {"model_type": "whisper", "lang_to_id": {"<|en|>": 3}},
        read_model_entries,
        ModelError,
    ),
    Kind(
        "preprocessor_config.json",
        {"chunk_length": 30, "max_length": 1024, "feature_extractor": {"chunk_length": 30}},
        read_processor_entries,
        ModelError,
    ),
    Kind(
        "adapter_config.json",
        {
            "r": 8,
            "rank_pattern": {"a": 4},
            "alpha_pattern": {"a": 4.0},
            "modules_to_save": ["head"],
            "use_rslora": False,
            "use_dora": False,
        },
        lambda path: peft_entries(path.parent),
        AdapterError,
    ),
    Kind(
        "config.json",
        {"model_type": "wav2vec2", "hidden_size": 32},
        lambda path: read_config(str(path.parent), None),
        ModelError,
    ),
    Kind(
        "model.safetensors.index.json",
        {"weight_map": {}},
        lambda path: check_weight_files(path.parent),
        ModelError,
    ),
    Kind(
        "ranks.json",
        {
            "schema": 1,
            "allocator": "entropy",
            "budget": 64,
            "reference": 4,
            "pruned_to": None,
            "groups": {"encoder": 64},
            "costs": {"a.fc": 16},
            "ranks": {"a.fc": 4},
            "evidence": {"a.fc": 2.5},
            "caps": {},
        },
        use_plan,
        AdapterError,
    ),
    Kind(
        "split.json",
        {
            "schema": 1,
            "stem": True,
            "unfreeze": ["encoder.norms"],
            "rates": {"stem": 0.5},
            "weights": {"encoder": 1.0},
            "gains": {"stem": 1.0},
            "parameters": {"stem": 4},
            "groups": ["encoder"],
        },
        read_components,
        AdapterError,
    ),
    Kind("parity.json", PARITY, read_parity, RunDirectoryError),
    Kind(
        "ablation.json",
        {
            "schema": 1,
            "manifests": {"data.train": "d"},
            "trials": [{"run": "a", "status": "failed", "line": "l", "error": "e", "exit_code": 4, "seconds": 1.0}],
        },
        lambda path: read_ablation(path.parent),
        RunDirectoryError,
    ),
]
KIND_IDS = [f"{kind.name}-{kind.error.__name__}" for kind in KINDS]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=KIND_IDS)

DAMAGED = {
    "nothing": b"",
    "no JSON": b'{"schema": ',
    "not UTF-8": b'{"schema": "\xff"}',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep in a key": b'{"schema": ' + b"[" * 500 + b"]" * 500 + b"}",
    "a list": b"[1]",
    "a text": b'"x"',
    "a huge number": b'{"extra": 1' + b"0" * 400 + b"}",
    "a number of too many digits": b'{"extra": ' + b"1" * 5000 + b"}",
    "an infinite number": b'{"extra": 1e999}',
}
WRONG: tuple[Any, ...] = (5, -1, 0.5, "x", True, None, [], [1], [[]], {}, {"x": 1}, {"x": {}}, 10**99)


def write(folder: Path, kind: Kind, data: bytes) -> Path:
    path = folder / kind.name
    path.write_bytes(data + b"\n")
    return path


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


@each_kind
def test_a_whole_file_is_read(tmp_path: Path, kind: Kind):
    kind.read(write(tmp_path, kind, encoded(kind.holds)))
    kind.read(write(tmp_path, kind, encoded({**kind.holds, "of a newer version": [{"a": None}]})))


@pytest.mark.parametrize("harm", DAMAGED)
@each_kind
def test_a_damaged_file_is_named(tmp_path: Path, kind: Kind, harm: str):
    path = write(tmp_path, kind, DAMAGED[harm])
    if harm == "nothing" and kind.read in (read_log, read_predictions):
        assert kind.read(path) == []
        return
    with pytest.raises(kind.error, match=str(path if harm != "nothing" else path.parent)):
        kind.read(path)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value can be exchanged: every key and every item below it."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*place, key)
        yield from places(value[key], (*place, key))


def exchanged(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    changed = copy.deepcopy(value)
    part = changed
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = new
    return changed


@each_kind
def test_whatever_stands_at_a_key_nothing_but_an_error_of_the_project_comes_out(tmp_path: Path, kind: Kind):
    refused = set()
    for place in places(kind.holds):
        for new in WRONG:
            path = write(tmp_path, kind, encoded(exchanged(kind.holds, place, new)))
            try:
                kind.read(path)
            except kind.error as error:
                refused.add(place[0])
                said = str(error)
            else:
                said = kind.name
            assert kind.name in said, (place, new)
    # What an architecture makes of its own settings is its affair.
    assert kind.name == "config.json" or len(refused) >= len(kind.holds) - 1, kind.holds.keys() - refused


def test_the_command_line_names_the_file_and_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for key, value in {"findings": ["x"], "stages": 5, "scores": 5, "choices": 3, "seconds": "long"}.items():
        (tmp_path / "run.json").write_text(json.dumps({**RECORD, key: value}))
        with pytest.raises(SystemExit) as ended:
            main(["report", str(tmp_path)])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert str(tmp_path / "run.json") in said
        assert key in said


# --- checkpoints -------------------------------------------------------------------------------------


def save(root: Path, step: int) -> Path:
    ones = {"a": torch.ones(2)}
    return checkpoint.save(root, step, weights=ones, optimizer={}, state={"position": {"step": step}, "identity": {}})


def sign(path: Path) -> None:
    """Let the manifest agree with a state that was changed."""
    manifest = json.loads((path / "MANIFEST.json").read_bytes())
    data = (path / "state.json").read_bytes()
    manifest["files"]["state.json"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "MANIFEST.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["MANIFEST.json", "state.json"])
def test_a_damaged_file_of_the_newest_checkpoint_gives_way_to_an_older_one(tmp_path: Path, name: str):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    holds = json.loads((newest / name).read_bytes())
    wrong = [encoded(exchanged(holds, place, "x")) for place in places(holds)]
    for data in (*DAMAGED.values(), *wrong):
        copied = shutil.copytree(newest, tmp_path / "step-000003")
        (copied / name).write_bytes(data)
        if name == "state.json":
            sign(copied)
        assert checkpoint.damage(copied)
        assert checkpoint.micro_batches(copied) is None
        with pytest.raises(CheckpointError, match="step-000003"):
            checkpoint.read(copied)
        shutil.rmtree(copied)
    (newest / name).write_bytes(DAMAGED["deep"])
    told: list[str] = []
    found = checkpoint.newest(tmp_path, on_damage=lambda path, problem: told.append(problem))
    assert found is not None
    assert found.step == 1
    assert name in told[0]


# --- the reader --------------------------------------------------------------------------------------


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.json"
    path.write_text('{"a": [NaN, Infinity, 1], "b": 1, "b": "\\udc80"}')
    assert read_json(path, OBJECT, error=ConfigError, do="") == {"a": [None, None, 1], "b": "\udc80"}
    with pytest.raises(ConfigError, match=r"larger than the 9 bytes .* Do this"):
        read_json(path, OBJECT, error=ConfigError, do="Do this.", max_bytes=9)
    with pytest.raises(ConfigError, match="is no file"):
        read_json(tmp_path, OBJECT, error=ConfigError, do="")
    with pytest.raises(ConfigError, match="No such file"):
        read_json(tmp_path / "none", OBJECT, error=ConfigError, do="")
    path.write_text("[" * json_files.MAX_DEPTH + "]" * json_files.MAX_DEPTH)
    read_json(path, TypeAdapter(list[Any]), error=ConfigError, do="")
    path.write_text("[" * (json_files.MAX_DEPTH + 1) + "]" * (json_files.MAX_DEPTH + 1))
    with pytest.raises(ConfigError, match="deeper than 64 levels"):
        read_json(path, TypeAdapter(list[Any]), error=ConfigError, do="")
    monkeypatch.setattr(json_files, "MAX_LINE_BYTES", 8)
    path.write_text('{"a": 1}\n\n{"a": 12}\n')
    with pytest.raises(ConfigError, match=r"a\.json:1 is longer than the 8 bytes"):
        list(read_json_lines(path, OBJECT, error=ConfigError, do=""))


def test_messages_name_the_key_what_is_there_and_what_may_be(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('{"a": {"b": 1.5}, "c": null, "d": [], "e": "x"}')
    with pytest.raises(ConfigError) as caught:
        read_json(path, TypeAdapter(dict[str, dict[str, Count]]), error=ConfigError, do="Mend it.")
    assert str(caught.value) == (
        f"{path}: a.b is 1.5, and it must be a whole number; c is null, and it must be an object; d is a list, and it "
        "must be an object; and 1 more. Mend it."
    )
    with pytest.raises(ConfigError, match="a is an object, and it must be a number"):
        read_json(path, TypeAdapter(dict[str, Number]), error=ConfigError, do="")


def test_a_torn_last_line_is_left_out_where_that_is_asked(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a"')
    assert list(read_json_lines(path, OBJECT, error=ConfigError, do="", whole=True)) == [{"a": 1}, {"a": 2}]
    with pytest.raises(ConfigError, match=r"a\.jsonl:4 is damaged"):
        list(read_json_lines(path, OBJECT, error=ConfigError, do=""))


@pytest.mark.parametrize("read", [read_log, read_predictions, read_record])
def test_a_pipe_is_refused_and_not_waited_for(read: Callable[[Path], object], tmp_path: Path):
    os.mkfifo(tmp_path / "file.jsonl")
    with pytest.raises(RunDirectoryError, match="it is no file"):
        read(tmp_path / "file.jsonl")


@pytest.mark.parametrize("key", ["id", "speaker", "labels"])
def test_a_name_without_end_is_refused_with_a_message_that_ends(tmp_path: Path, key: str):
    name = "x" * 100_000
    row = {"id": "a", "labels": ["a"], "speaker": "s"} | {key: [name] if key == "labels" else name}
    (tmp_path / "file.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    with pytest.raises(RunDirectoryError, match=f"{key}.*at most 5000 characters") as caught:
        read_predictions(tmp_path / "file.jsonl")
    assert len(str(caught.value)) < 1000
