"""Checkpoints: whole or absent, never trusted without their hashes, never lost to a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sonotune.errors import CheckpointError, ResourceError
from sonotune.training import checkpoint
from sonotune.training.compatibility import Fingerprint

IDENTITY = {"settings": "a" * 64, "training data": "b" * 64, "base model": "c" * 16}


def wanted(values: Mapping[str, str] = IDENTITY) -> Fingerprint:
    return Fingerprint(values=values, may_differ=frozenset())


FILES = ("weights.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")


def save(root: Path, step: int, **state: Any) -> Path:
    return checkpoint.save(
        root,
        step,
        weights={"a": torch.full((4, 4), float(step)), "b": torch.arange(3.0)},
        optimizer={"a/exp_avg": torch.full((4, 4), 0.5), "a/step": torch.tensor(float(step))},
        state={"position": {"step": step}, "identity": IDENTITY, **state},
    )


class Damages(list):
    """Collects what `newest` says about bad checkpoints."""

    def __call__(self, path: Path, problem: str) -> None:
        self.append((path, problem))


def read_newest(root: Path) -> tuple[checkpoint.Checkpoint | None, Damages]:
    damages = Damages()
    return checkpoint.newest(root, on_damage=damages), damages


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0b100
    path.write_bytes(bytes(data))


def test_what_was_saved_comes_back(tmp_path: Path):
    weights = {"w": torch.randn(3, 5), "half": torch.randn(4).to(torch.bfloat16), "scalar": torch.tensor(2.0)}
    moments = {"w/exp_avg": torch.randn(3, 5)}
    checkpoint.save(tmp_path, 7, weights=weights, optimizer=moments, state={"position": {"batch": 3}, "note": "שלום"})
    found, damages = read_newest(tmp_path)
    assert found is not None
    assert not damages
    assert found.step == 7
    assert found.path.name == "step-000007"
    assert found.weights.keys() == weights.keys()
    assert all(torch.equal(found.weights[name], weights[name]) for name in weights)
    assert torch.equal(found.optimizer["w/exp_avg"], moments["w/exp_avg"])
    assert found.state["position"] == {"batch": 3}
    assert found.state["note"] == "שלום"
    assert sorted(file.name for file in found.path.iterdir()) == sorted(FILES)


def test_a_checkpoint_before_the_first_step_has_no_moments_and_is_whole(tmp_path: Path):
    checkpoint.save(tmp_path, 0, weights={"w": torch.zeros(2)}, optimizer={}, state={})
    found, _ = read_newest(tmp_path)
    assert found is not None
    assert found.optimizer == {}


def test_nothing_there_is_no_error(tmp_path: Path):
    assert read_newest(tmp_path / "absent") == (None, [])
    assert read_newest(tmp_path) == (None, [])


def test_publishing_is_a_rename_after_everything_was_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The manifest is written last, and the final name appears only when all is there."""
    seen: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(descriptor: int) -> None:
        opened = os.fstat(descriptor)
        [path] = [one for one in (tmp_path, *tmp_path.rglob("*")) if os.path.samestat(one.stat(), opened)]
        seen.append(f"sync {path.name}")
        real_sync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        seen.append(f"rename {sorted(file.name for file in self.iterdir())}")
        assert not Path(target).exists()
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    save(tmp_path, 1)
    draft = f".tmp-000001-{os.getpid()}"
    assert seen == [
        "sync weights.safetensors",
        "sync optimizer.safetensors",
        "sync state.json",
        "sync MANIFEST.json",
        f"sync {draft}",
        f"rename {sorted(FILES)}",
        f"sync {tmp_path.name}",
    ]
    times = {name: (tmp_path / "step-000001" / name).stat().st_mtime_ns for name in FILES}
    assert max(times, key=times.__getitem__) == "MANIFEST.json"


def test_a_draft_left_by_a_kill_is_never_taken_for_a_checkpoint(tmp_path: Path):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-000001", tmp_path / ".tmp-000002-123")
    found, damages = read_newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert not damages
    checkpoint.prune(tmp_path, keep=2)
    assert not (tmp_path / ".tmp-000002-123").exists()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink], ids=["truncated", "bit flipped", "deleted"])
def test_a_damaged_file_is_found_set_aside_and_the_older_checkpoint_is_used(
    tmp_path: Path, name: str, harm: Callable[[Path], None]
):
    save(tmp_path, 2)
    newest = save(tmp_path, 10)
    harm(newest / name)
    found, damages = read_newest(tmp_path)
    assert found is not None
    assert found.step == 2
    assert torch.equal(found.weights["a"], torch.full((4, 4), 2.0))
    [(aside, problem)] = damages
    assert name in problem or name == "MANIFEST.json"  # a wrong hash could be the file's or the manifest's fault
    assert aside.is_dir()
    assert aside.name.startswith("quarantine-step-000010")
    assert not newest.exists()
    assert read_newest(tmp_path)[1] == []  # said once


def test_any_single_flipped_bit_of_the_manifest_never_lets_other_contents_through(tmp_path: Path):
    save(tmp_path, 2)
    newest = save(tmp_path, 10)
    good = (newest / "MANIFEST.json").read_bytes()
    bits = np.random.default_rng(0).integers(0, 8, len(good))
    for place, bit in enumerate(bits.tolist()):
        bad = bytearray(good)
        bad[place] ^= 1 << bit
        (newest / "MANIFEST.json").write_bytes(bytes(bad))
        # A space may become another white space; anything else must be seen, and nothing may crash.
        if checkpoint.damage(newest) is None:
            assert json.loads(bytes(bad)) == json.loads(good)


@pytest.mark.parametrize("what", ["empty", "foreign", "other step", "not a manifest"])
def test_a_strange_directory_of_a_higher_step_is_set_aside(tmp_path: Path, what: str):
    save(tmp_path, 3)
    strange = tmp_path / "step-000009"
    if what == "other step":
        shutil.copytree(tmp_path / "step-000003", strange)
    else:
        strange.mkdir()
        if what == "foreign":
            (strange / "pytorch_model.bin").write_bytes(b"\x80\x04")
        if what == "not a manifest":
            (strange / "MANIFEST.json").write_text("[1, 2]")
    found, damages = read_newest(tmp_path)
    assert found is not None
    assert found.step == 3
    assert len(damages) == 1


def test_order_is_by_step_number_and_not_by_time_or_name(tmp_path: Path):
    for step in (1_000_000, 999_999, 5):
        save(tmp_path, step)
    os.utime(tmp_path / "step-000005", (2**31, 2**31))
    found, _ = read_newest(tmp_path)
    assert found is not None
    assert found.step == 1_000_000


def test_when_none_is_whole_the_error_lists_all_and_says_it_again_next_time(tmp_path: Path):
    for step in (1, 2):
        flip(save(tmp_path, step) / "weights.safetensors")
    for _ in range(2):  # a scheduler that tries again must not start from nothing in silence
        with pytest.raises(CheckpointError) as caught:
            read_newest(tmp_path)
        assert caught.value.exit_code == 6
        assert "step-000001" in str(caught.value)
        assert "step-000002" in str(caught.value)
        assert "weights.safetensors" in str(caught.value)


def test_the_same_step_can_be_set_aside_twice_by_one_process(tmp_path: Path):
    save(tmp_path, 1)
    for _ in range(2):
        flip(save(tmp_path, 2) / "state.json")
        found, damages = read_newest(tmp_path)
        assert found is not None
        assert found.step == 1
        assert len(damages) == 1
    assert len(list(tmp_path.glob("quarantine-*"))) == 2


def test_reading_a_chosen_checkpoint_verifies_it(tmp_path: Path):
    path = save(tmp_path, 4)
    assert checkpoint.read(path).step == 4
    flip(path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        checkpoint.read(path)
    with pytest.raises(CheckpointError, match="step-000005"):
        checkpoint.read(tmp_path / "step-000005")


def test_saving_the_same_step_again_replaces_it(tmp_path: Path):
    save(tmp_path, 4, note="first")
    save(tmp_path, 4, note="second")
    found, _ = read_newest(tmp_path)
    assert found is not None
    assert found.state["note"] == "second"


@pytest.mark.parametrize("moment", ["weights", "state", "rename"])
def test_a_full_disk_keeps_earlier_checkpoints_and_leaves_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    save(tmp_path, 1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        if moment == "weights":
            patched.setattr("safetensors.torch.save_file", full)
        elif moment == "state":
            patched.setattr(json, "dump", full)
        else:
            patched.setattr(Path, "rename", full)
        with pytest.raises(ResourceError) as caught:
            save(tmp_path, 2)
    assert caught.value.exit_code == 5
    assert str(tmp_path) in str(caught.value)
    assert "144 bytes" in str(caught.value)  # 4 x 4 + 3 weights and 4 x 4 + 1 moments of four bytes
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    found, _ = read_newest(tmp_path)
    assert found is not None
    assert found.step == 1


def test_a_full_disk_that_safetensors_reports_is_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from safetensors import SafetensorError

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(ResourceError, match="no space left"):
        save(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file"):
        save(tmp_path / "file", 1)


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path):
    for step in range(1, 7):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, keep=2, protect=[3])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000005", "step-000006"]
    checkpoint.prune(tmp_path, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000006"]


@pytest.mark.parametrize("reason", ["pruned", "replaced"])
def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_none_half_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
):
    for step in (1, 2, 3):
        save(tmp_path, step)

    class KilledError(BaseException):
        pass

    def killed(path: Path, **_: Any) -> None:
        if path.exists():
            (path / "weights.safetensors").unlink()
            raise KilledError

    with monkeypatch.context() as patched, pytest.raises(KilledError):  # noqa: PT012  (two ways to be killed)
        patched.setattr(shutil, "rmtree", killed)
        if reason == "pruned":
            checkpoint.prune(tmp_path, keep=2)
        else:
            save(tmp_path, 3)
    published = list(tmp_path.glob("step-*"))
    assert published
    assert [checkpoint.damage(path) for path in published] == [None] * len(published)
    checkpoint.prune(tmp_path, keep=9)
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_checkpoint_of_another_run_is_refused_with_everything_that_differs(tmp_path: Path):
    save(tmp_path, 1)
    saved, _ = read_newest(tmp_path)
    assert saved is not None
    checkpoint.check_fingerprint(saved, wanted(), ["a", "b"])
    other = {**IDENTITY, "settings": "x" * 64, "base model": "y" * 16}
    with pytest.raises(CheckpointError) as caught:
        checkpoint.check_fingerprint(saved, wanted(other), ["a", "b", "missing.weight"])
    message = str(caught.value)
    assert caught.value.exit_code == 6
    assert f"settings was {'a' * 16} and is now {'x' * 16}" in message
    assert f"base model was {'c' * 16} and is now {'y' * 16}" in message
    assert "training data" not in message
    assert "missing.weight" in message


@pytest.mark.parametrize("part", ["position", "identity"])
def test_a_checkpoint_without_a_part_is_refused(tmp_path: Path, part: str):
    path = save(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    del state[part]
    saved = checkpoint.Checkpoint(path=path, step=1, weights={"a": torch.zeros(1)}, optimizer={}, state=state)
    with pytest.raises(CheckpointError, match=part if part == "position" else "not recorded"):
        checkpoint.check_fingerprint(saved, wanted(), ["a"])


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
def test_a_file_that_holds_no_tensors_is_damage_though_its_digest_is_right(tmp_path: Path, name: str):
    path = save(tmp_path, 7)
    (path / name).write_bytes(b"no tensors")
    manifest = json.loads((path / "MANIFEST.json").read_text("utf-8"))
    manifest["files"][name] = {"bytes": 10, "sha256": hashlib.sha256(b"no tensors").hexdigest()}
    (path / "MANIFEST.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(CheckpointError, match=f"{name} holds no tensors"):
        checkpoint.read(path)
    with pytest.raises(CheckpointError, match="is whole"):
        checkpoint.newest(tmp_path, on_damage=lambda *_: None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_checkpoint_of_values_that_are_no_numbers_is_not_resumed(tmp_path: Path, value: float):
    save(tmp_path, 1)
    broken = torch.full((4, 4), value)
    for step, (weights, moments) in ((2, (broken, torch.ones(4, 4))), (3, (torch.ones(4, 4), broken))):
        checkpoint.save(
            tmp_path,
            step,
            weights={"a": weights},
            optimizer={"a/exp_avg": moments},
            state={"position": {"step": step}, "identity": IDENTITY},
        )
    found, damages = read_newest(tmp_path)
    assert found is not None
    assert found.step == 1
    assert [problem for _, problem in damages] == [
        "optimizer.safetensors holds NaN or infinity in a/exp_avg",
        "weights.safetensors holds NaN or infinity in a",
    ]
