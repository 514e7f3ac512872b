"""Commands that are killed at every file-system operation, and what they are given to work on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sonotune.registry import resolve_asset

RATE_HZ = 16_000
Tree = Mapping[str, str]


def tree(folder: Path) -> dict[str, str]:
    """What a user sees of a folder: relative path -> digest; names that begin with a dot are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not any(part.startswith(".") for part in name.split("/")):
            found[name] = "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@dataclass
class Ended:
    """How a command ended."""

    killed: bool
    code: int | None
    operations: list[str]
    said: str


class Killer:
    """A process that forks for each command, and imports what the last one imported.

    Args:
        process: It.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, words: Sequence[str], watch: Path, *, at: int | None = None, exchange: bool = True) -> Ended:
        """Run a command; kill it before its `at`-th operation that changes `watch`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"words": list(words), "watch": str(watch), "at": at, "exchange": exchange}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def at_every_point(
        self,
        words: Sequence[str],
        work: Path,
        *,
        sampled: bool = False,
        exchange: bool = True,
        half: Callable[[Path], bool] = lambda _: False,
    ) -> list[str]:
        """Kill a command at its operations and check what is left each time: all of the old, or all of the new.

        After each kill the same command must succeed, or refuse because its result is there, and nothing that lay in
        the folder before may be gone.

        Args:
            words: The command.
            work: The folder it works in, as it is before; what it writes lies below.
            sampled: Take the first, the middle and the last operation, and the last three renames with what follows.
            exchange: Whether the system can swap two folders at once.
            half: Says of a folder that is neither old nor new whether that is allowed.

        Returns:
            The operations of the whole command.
        """
        pristine = work.with_name(f"{work.name}-pristine")
        shutil.rmtree(pristine, ignore_errors=True)
        shutil.copytree(work, pristine, symlinks=True)
        before, hidden = tree(work), {path.name for path in work.rglob(".*")}

        def reset() -> None:
            shutil.rmtree(work)
            shutil.copytree(pristine, work, symlinks=True)

        whole = self.run(words, work, exchange=exchange)
        assert whole.code == 0, whole.said
        after, count = tree(work), len(whole.operations)
        assert after != before
        tried: set[tuple[Any, ...]] = set()
        for point in _sample(whole.operations) if sampled else range(1, count + 1):
            reset()
            ended = self.run(words, work, at=point, exchange=exchange)
            where = f"killed at {point} of {count}: {ended.operations[-1:]}"
            assert ended.killed, (where, ended.code, ended.said)
            seen = tree(work)
            assert seen in (before, after) or half(work), (where, differences(seen, before, after))
            kind = (*sorted(seen.items()), *sorted(_plain(path.name) for path in work.rglob(".*")))
            if kind in tried:
                continue  # the same command goes on from the same things
            tried.add(kind)
            again = self.run(words, work, exchange=exchange)
            refused = again.code == 2 and seen == after and re.search(r"exists already|is not empty", again.said)
            assert again.code == 0 or refused, (where, again.said)
            assert tree(work) == after, (where, differences(tree(work), before, after))
            assert hidden <= {path.name for path in work.rglob(".*")}, where
        reset()
        unharmed = self.run(words, work, at=count + 1, exchange=exchange)
        assert not unharmed.killed
        assert tree(work) == after  # the same bytes again, or none of the comparisons above meant anything
        return whole.operations


def _sample(operations: Sequence[str]) -> list[int]:
    """Some operations, counted from 1: those by which something takes its name, and others."""
    count = len(operations)
    renames = [at for at, what in enumerate(operations, start=1) if what.startswith(("exchange", "os.rename"))][-3:]
    return sorted({1, count // 2, count, *renames, *(min(at + 1, count) for at in renames)})


def _plain(name: str) -> str:
    """The name of a draft without what is random in it."""
    return re.sub(r"[0-9a-f]{8}|[0-9]+", "*", name)


def differences(seen: Tree, before: Tree, after: Tree) -> dict[str, str]:
    """Of each file that tells: what it is."""
    names = sorted({*seen, *before, *after})

    def of(name: str) -> str:
        if name not in seen:
            return "absent"
        return "old" if seen[name] == before.get(name) else "new" if seen[name] == after.get(name) else "neither"

    return {name: of(name) for name in names if before.get(name) != after.get(name)}


@contextmanager
def _started(*modules: str) -> Iterator[Killer]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    driver = Path(__file__).with_name("driver.py")
    with subprocess.Popen(
        [sys.executable, str(driver), *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield Killer(process)
        process.stdin.close()
        assert process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    """Of commands that need no model; without torch a process forks in a tenth of the time."""
    with _started("sonotune.cli") as started:
        yield started


@pytest.fixture(scope="module")
def model_killer() -> Iterator[Killer]:
    """Of commands that open a model."""
    with _started("sonotune.cli", "torch") as started:
        yield started


def write_corpus(folder: Path, name: str, count: int, *, first: int = 0) -> Path:
    """Tones of half a second with their texts, and their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for index in range(first, first + count):
        tone_S = 0.3 * np.sin(2 * np.pi * (200 + 50 * index) * np.arange(RATE_HZ // 2) / RATE_HZ)
        soundfile.write(folder / f"{index}.wav", tone_S, RATE_HZ)
        text = ("one", "two", "three seven", "nine", "six")[index % 5]
        lines.append(
            {"id": f"c{index}", "path": f"{index}.wav", "text": text, "speaker": f"s{index}", "language": "en"}
        )
    manifest = folder / f"{name}.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return manifest


@pytest.fixture(scope="session")
def make_corpus() -> Callable[..., Path]:
    """`write_corpus`, for tests that need other clips than those of `corpus`."""
    return write_corpus


@pytest.fixture(scope="module")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whisper of some thousand random parameters with the packaged processor."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    source = resolve_asset("assets:whisper-nano")
    folder = tmp_path_factory.mktemp("model") / "tiny"
    config = WhisperConfig.from_pretrained(source)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_source_positions": 750}
    heads = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    config.update({**sizes, **heads, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        WhisperForConditionalGeneration(config).save_pretrained(folder)
    for file in source.iterdir():
        if file.suffix == ".json" and file.name != "config.json":
            shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train.jsonl` of 8 clips and `eval.jsonl` of 2."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, "train", 8)
    write_corpus(folder, "eval", 2, first=8)
    return folder


@pytest.fixture(scope="module")
def words(corpus: Path) -> list[str]:
    """Settings for a short run on the corpus."""
    return [
        f"data.train={corpus / 'train.jsonl'}",
        f"data.eval={corpus / 'eval.jsonl'}",
        "data.min_duration_s=0.1",
        "data.loader_workers=0",
        "training.precision=fp32",
        "training.batch_max_clips=4",
        "adapter.rank=2",
    ]


@pytest.fixture(scope="module")
def trained(
    model_killer: Killer, tiny_whisper: Path, words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of one step."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    short = ["training.max_steps=1", "training.eval_steps=never", "evaluation.bootstrap=100", "run.progress=false"]
    decoding = ["evaluation.max_new_tokens=2", "evaluation.zero_shot=false"]
    ended = model_killer.run(["train", f"model={tiny_whisper}", *words, *short, *decoding, f"run.dir={folder}"], folder)
    assert ended.code == 0, ended.said
    return folder
