"""The weights of clips in a run: 1 is none, 0 is absence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sonotune.config.load import LoadedConfig
from sonotune.errors import ManifestError
from sonotune.runs import read_events, read_record
from sonotune.training.run import run

Settings = Callable[..., LoadedConfig]
SHORT = ("training.max_epochs=1", "training.eval_steps=never", "evaluation.zero_shot=false")


def with_weights(corpus: Path, target: Path, weigh: Callable[[int], float | None], *, keep_zero: bool = True) -> Path:
    """The training clips with a weight each; None leaves the column out."""
    lines = []
    for number, line in enumerate((corpus / "train.jsonl").read_text("utf-8").splitlines()):
        clip, weight = json.loads(line), weigh(number)
        clip["path"] = str(corpus / clip["path"])
        if weight == 0 and not keep_zero:
            continue
        lines.append(json.dumps(clip if weight is None else clip | {"weight": weight}) + "\n")
    target.write_text("".join(lines), "utf-8")
    return target


@pytest.fixture
def trained(settings: Settings, corpus: Path, tmp_path: Path) -> Callable[..., Path]:
    def train(name: str, weigh: Callable[[int], float | None], **how: bool) -> Path:
        manifest = with_weights(corpus, tmp_path / f"{name}.jsonl", weigh, **how)
        run(settings(f"data.train={manifest}", *SHORT, folder=tmp_path / name, augmented=True))
        return tmp_path / name

    return train


def steps(folder: Path) -> list[tuple[float, int]]:
    events = [event for event in read_events(folder / "events.jsonl") if event["kind"] == "step"]
    return [(event["loss"], event["clips"]) for event in events]


def weights(folder: Path) -> dict[str, bytes]:
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_a_weight_of_one_changes_no_bit(trained: Callable[..., Path]):
    plain, full = trained("plain", lambda number: None), trained("full", lambda number: 1)
    assert steps(plain) == steps(full)
    assert weights(plain) == weights(full)
    assert read_record(plain).data_digest["train"] == read_record(full).data_digest["train"]


def test_a_weight_of_zero_is_absence_and_is_told(trained: Callable[..., Path]):
    def weigh(number: int) -> float | None:
        return 0 if number % 3 == 0 else None

    zero, absent = trained("zero", weigh), trained("absent", weigh, keep_zero=False)
    assert steps(zero) == steps(absent)
    assert weights(zero) == weights(absent)
    [told] = [finding for finding in read_record(zero).findings if finding.check == "data.no_weight"]
    assert told.clip_ids == tuple(f"c{number}" for number in range(0, 20, 3))
    assert not [finding for finding in read_record(absent).findings if finding.check == "data.no_weight"]


def test_weights_change_what_is_learned(trained: Callable[..., Path]):
    half = trained("half", lambda number: 0.5 if number % 2 else 1.0)
    plain = trained("plain", lambda number: None)
    assert steps(half) != steps(plain)
    assert read_record(half).data_digest["train"] != read_record(plain).data_digest["train"]


def test_where_no_clip_has_a_weight_there_is_nothing_to_learn(trained: Callable[..., Path]):
    with pytest.raises(ManifestError, match=r"all 20 clips of data\.train have weight 0"):
        trained("none", lambda number: 0)
