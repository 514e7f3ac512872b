"""Checkpoints that are whole or absent, and never trusted without their hashes.

A checkpoint is a directory written beside its final name, every file fsynced, `MANIFEST.json` with size and SHA-256 of
each file written last, then renamed. Resume walks newest to oldest by step number, verifies, and sets aside what is
bad.

    step-000120/
      weights.safetensors     every trainable parameter, by name
      optimizer.safetensors   moments, by parameter name
      state.json              counters, position, best score, digests
      MANIFEST.json
    start.safetensors         every trainable parameter before the first step, where the model was scored there
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, get_type_hints

import safetensors.torch
from pydantic import TypeAdapter, with_config
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import TypedDict

from sonotune.errors import CheckpointError, ResourceError, first_line
from sonotune.json_files import check_json, read_json
from sonotune.models.pretrained import not_finite
from sonotune.processes import Processes
from sonotune.runs import digest_file
from sonotune.training.compatibility import ADDED_LATER, MICRO_BATCHES, Fingerprint
from sonotune.training.state import TrainingState

START = "start.safetensors"
WEIGHTS, OPTIMIZER, STATE, MANIFEST = "weights.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"
REQUIRED = (WEIGHTS, OPTIMIZER, STATE)
SCHEMA = 1
_STEP = re.compile(r"^step-(\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        path: Its directory.
        step: Optimiser steps done.
        weights: Trainable parameters by name.
        optimizer: Optimiser state by `name/moment`.
        state: Everything else.
    """

    path: Path
    step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: _State


class _File(TypedDict):
    bytes: int
    sha256: str


class _Manifest(TypedDict):
    schema: int
    step: int
    files: dict[str, _File]


class _State(TypedDict):
    step: int
    stage: NotRequired[str]
    identity: NotRequired[dict[str, str]]
    position: NotRequired[dict[str, Any]]
    optimizer: NotRequired[list[str]]
    scaler: NotRequired[dict[str, Any] | None]


_MANIFEST, _STATE = TypeAdapter(_Manifest), TypeAdapter(_State)
_POSITION: TypeAdapter[dict[str, Any]] = TypeAdapter(
    with_config(extra="forbid")(TypedDict("_Position", get_type_hints(TrainingState), total=False))  # type: ignore[operator]
)
_MAX_MANIFEST = 2**20


def save(
    root: Path, step: int, *, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Publish a checkpoint; an existing one of the same step is replaced.

    Raises:
        ResourceError: The disk is full; earlier checkpoints are untouched.
    """
    final, draft = step_path(root, step), root / f".tmp-{step:06d}-{os.getpid()}"
    needed = sum(t.numel() * t.element_size() for part in (weights, optimizer) for t in part.values())
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        _write_tensors(draft / WEIGHTS, weights)
        _write_tensors(draft / OPTIMIZER, optimizer)
        _write_json(draft / STATE, {"step": step, **state})
        files = {
            name: {"bytes": (draft / name).stat().st_size, "sha256": digest_file(draft / name)} for name in REQUIRED
        }
        _write_json(draft / MANIFEST, {"schema": SCHEMA, "step": step, "files": files})
        _sync(draft)
        if final.exists():
            _discard(final)
        draft.rename(final)
        _sync(root)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            free = shutil.disk_usage(root).free
            raise ResourceError(
                f"no space left for a checkpoint in {root}: it needs {needed} bytes, {free} are free. "
                "Earlier checkpoints are intact; free some space and run the same command again."
            ) from error
        raise ResourceError(f"cannot write a checkpoint in {root}: {error}") from error
    return final


def save_start(root: Path, weights: Mapping[str, Tensor]) -> None:
    """Keep the weights from before the first step.

    Raises:
        ResourceError: The disk is full.
    """
    draft = root / f".tmp-{START}-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        _write_tensors(draft, weights)
        draft.rename(root / START)
        _sync(root)
    except (OSError, SafetensorError) as error:
        draft.unlink(missing_ok=True)
        raise ResourceError(
            f"cannot write {root / START}: {first_line(error)}. Free some space, and try again."
        ) from error


def read_start(root: Path) -> dict[str, Tensor] | None:
    """The weights from before the first step; None where they were not kept.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = root / START
    if not path.is_file():
        return None
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}. Start afresh in a new run.dir.") from error


def newest(root: Path, *, on_damage: Callable[[Path, str], None]) -> Checkpoint | None:
    """The newest whole checkpoint, by step number.

    Args:
        root: Folder of checkpoints; need not exist.
        on_damage: Called with the new place of each damaged checkpoint and what is wrong with it.

    Raises:
        CheckpointError: There are checkpoints, and none is whole.
    """
    damaged: list[tuple[Path, str]] = []
    for path in published(root):
        try:
            found = _load(path)
        except CheckpointError as error:
            damaged.append((path, str(error)))
            continue
        for bad, what in damaged:
            on_damage(_set_aside(bad), what)
        return found
    if damaged:  # left where they are, so that the next attempt says the same instead of starting from nothing
        problems = "; ".join(f"{path.name}: {problem}" for path, problem in damaged)
        raise CheckpointError(
            f"no checkpoint in {root} is whole ({problems}). Start afresh in a new run.dir, or restore the files."
        )
    return None


def newest_of_all(root: Path, processes: Processes, *, event: Callable[..., None]) -> Checkpoint | None:
    """The newest whole checkpoint, found by the first process, which sets aside what is damaged, and read by all.

    Args:
        root: Folder of checkpoints; need not exist.
        processes: All have to ask.
        event: Logs what was set aside.

    Raises:
        CheckpointError: There are checkpoints, and none is whole.
    """
    saved = None
    if processes.main:
        saved = newest(root, on_damage=lambda path, problem: event("quarantined", path=path.name, problem=problem))
    path = processes.broadcast(None if saved is None else saved.path)
    return read(path) if saved is None and path is not None else saved


def _set_aside(path: Path) -> Path:
    places = (path.with_name(f"quarantine-{path.name}-{count}") for count in itertools.count(1))
    aside = next(place for place in places if not place.exists())
    return path.rename(aside)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint directory, or None."""
    try:
        manifest = read_json(path / MANIFEST, _MANIFEST, error=CheckpointError, do="", max_bytes=_MAX_MANIFEST)
    except CheckpointError as error:
        return str(error).removesuffix(". ")
    schema, step, files = manifest["schema"], manifest["step"], manifest["files"]
    if schema != SCHEMA or step != _step(path):
        return f"{MANIFEST} is of schema {schema} and step {step}; schema {SCHEMA} and step {_step(path)} are expected"
    if absent := [name for name in REQUIRED if name not in files or not (path / name).is_file()]:
        return f"{', '.join(absent)} missing"
    for name in REQUIRED:
        size, digest = files[name]["bytes"], files[name]["sha256"]
        if (path / name).stat().st_size != size:
            return f"{name} has {(path / name).stat().st_size} bytes, {size} were written"
        if digest_file(path / name) != digest:
            return f"{name} has changed since it was written (SHA-256 differs)"
    try:
        _read_state(path)
        for name in (WEIGHTS, OPTIMIZER):
            with safe_open(path / name, "pt"):  # reads the table at its head, which says how long the file is
                pass
    except CheckpointError as error:
        return str(error).removesuffix(". ")
    except SafetensorError as error:
        return f"{name} holds no tensors: {first_line(error)}"
    return None


def read(path: Path) -> Checkpoint:
    """Load a checkpoint.

    Raises:
        CheckpointError: It is not whole.
    """
    try:
        return _load(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} cannot be used: {error}. Restore its files, or train again in a new run.dir."
        ) from error


def _load(path: Path) -> Checkpoint:
    """Raises CheckpointError, which says what is wrong and nothing else."""
    if problem := damage(path):
        raise CheckpointError(problem)
    state = _read_state(path)
    found = Checkpoint(
        path=path,
        step=state["step"],
        weights=safetensors.torch.load_file(path / WEIGHTS),
        optimizer=safetensors.torch.load_file(path / OPTIMIZER),
        state=state,
    )
    for name, tensors in ((WEIGHTS, found.weights), (OPTIMIZER, found.optimizer)):
        if lost := not_finite(tensors):
            raise CheckpointError(f"{name} holds NaN or infinity in {min(lost)}")
    return found


def _read_state(path: Path) -> _State:
    state = read_json(path / STATE, _STATE, error=CheckpointError, do="")
    if "position" in state:
        check_json(state["position"], _POSITION, where=f"{path / STATE}, position", error=CheckpointError, do="")
    return state


def check_fingerprint(saved: Checkpoint, wanted: Fingerprint, expected: Collection[str]) -> frozenset[str]:
    """Refuse a checkpoint of another run.

    Args:
        saved: What would be resumed.
        wanted: The resume fingerprint of this run.
        expected: Names of the parameters that train.

    Returns:
        Keys of the fingerprint that differ, and may.

    Raises:
        CheckpointError: A digest differs or a part is missing; the message lists all of them.
    """
    identity, may_differ = wanted.values, wanted.may_differ
    known = saved.state.get("identity", {})
    asked = (identity.keys() | known.keys()) - (ADDED_LATER - known.keys())
    differing = frozenset(key for key in asked if known.get(key) != identity.get(key))
    problems = [
        f"{key} was {known.get(key, 'not recorded')[:16]} and is now {identity.get(key, 'none')[:16]}"
        for key in sorted(differing.difference(may_differ))
    ]
    if absent := [name for name in expected if name not in saved.weights]:
        problems.append(f"{len(absent)} trained weights are missing, the first is {absent[0]}")
    if "position" not in saved.state:
        problems.append("the position in the data is missing")
    if problems:
        raise CheckpointError(
            f"{saved.path} cannot be resumed: {'; '.join(problems)}. "
            "Use another run.dir, or restore the settings and data it was made with; what may change has to be named "
            "in run.allow_change (data.train for other clips) until the next checkpoint."
        )
    return differing


def micro_batches(path: Path) -> int | None:
    """Micro-batches of a step of the run that wrote a checkpoint; None where it does not say."""
    try:
        return int(_read_state(path)["identity"][MICRO_BATCHES])
    except (CheckpointError, KeyError, ValueError):
        return None  # damaged: found out, and set aside, when it is read


def prune(root: Path, *, keep: int, protect: Collection[int] = ()) -> None:
    """Delete all but the newest `keep` checkpoints and the protected steps, and drafts of dead processes."""
    for path in published(root)[keep:]:
        if _step(path) not in protect:
            _discard(path)
    for draft in root.glob(".tmp-*"):
        shutil.rmtree(draft, ignore_errors=True)


def _discard(path: Path) -> None:
    """Take the name away before the files, so that a kill in between leaves no half-deleted checkpoint."""
    doomed = path.with_name(f".tmp-old-{path.name}-{os.getpid()}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def step_path(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:06d}"


def published(root: Path) -> list[Path]:
    """Checkpoints that carry their final name, whole or damaged, newest first."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if _STEP.match(path.name)), key=_step, reverse=True)


def _step(path: Path) -> int:
    match = _STEP.match(path.name)
    return int(match[1]) if match else -1


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    safetensors.torch.save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    _sync(path)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, sort_keys=True, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
