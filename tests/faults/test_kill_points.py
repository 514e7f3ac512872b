"""Whatever is killed, and wherever: a folder is the old one or the new one, and the same command goes through."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sonotune.data.manifest import read_manifest
from sonotune.errors import ManifestError

Killer = Any  # of conftest.py
SPLITS = ("train", "eval", "test")


def speech(folder: Path, count: int = 12) -> Path:
    """A manifest of clips that no split has to open."""
    folder.mkdir(parents=True)
    lines = [
        {"id": f"c{index}", "path": f"{index}.wav", "duration_s": 2.0, "speaker": f"s{index}", "text": f"text {index}"}
        for index in range(count)
    ]
    manifest = folder / "all.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return manifest


def tree(folder: Path) -> dict[str, bytes]:
    """Files below a folder and their content."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def split_ids(folder: Path) -> dict[str, frozenset[str]]:
    """What each manifest of a split holds, read as any user of it would."""
    return {
        name: frozenset(clip.id for clip in read_manifest(folder / f"{name}.jsonl", root=folder.parent))
        for name in SPLITS
        if (folder / f"{name}.jsonl").exists()
    }


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with files of somebody else."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    (folder / ".hidden").write_text("mine")
    return folder


# --- data split ----------------------------------------------------------------------------------


def test_a_first_split_is_there_whole_or_not_at_all(killer: Killer, work: Path):
    manifest = speech(work / "corpus")
    operations = killer.at_every_point(["data", "split", str(manifest), str(work / "parts"), "--json"], work)
    assert len(operations) > 10
    assert set(split_ids(work / "parts")) == set(SPLITS)


@pytest.mark.parametrize("exchange", [True, False], ids=["swapped at once", "in two steps"])
def test_a_split_replaces_an_earlier_one_as_a_whole(killer: Killer, work: Path, exchange: bool):
    """Also where the new one has fewer parts."""
    manifest, parts = speech(work / "corpus"), work / "parts"
    words = ["data", "split", str(manifest), str(parts)]
    assert killer.run(words, work).code == 0
    old = tree(parts)

    def set_aside(folder: Path) -> bool:
        """Where two folders cannot be swapped at once, the old one lies beside for an instant."""
        aside = list(folder.glob(".parts.*.tmp.old"))
        return not exchange and not parts.exists() and [tree(one) for one in aside] == [old]

    killer.at_every_point([*words, "--seed", "3", "--test-size", "0"], work, exchange=exchange, half=set_aside)
    assert set(split_ids(parts)) == {"train", "eval"}


def test_a_split_beside_the_audio_is_never_read_half(killer: Killer, work: Path):
    """No system replaces several files at once: what is half is of one split alone, and is refused by who reads it."""
    manifest = speech(work / "corpus")
    words = ["data", "split", str(manifest), str(manifest.parent)]
    assert killer.run(words, work).code == 0
    states = [split_ids(manifest.parent)]
    shutil.copytree(work, work.with_name("new"))
    new = work.with_name("new") / "corpus"
    assert killer.run(["data", "split", str(new / "all.jsonl"), str(new), "--seed", "3"], work).code == 0
    states.append(split_ids(new))
    assert all(states[0][name] != states[1][name] for name in SPLITS)
    halves = 0

    def refused(folder: Path) -> bool:
        nonlocal halves
        halves += 1
        left = [folder / "corpus" / f"{name}.jsonl" for name in SPLITS]
        found = {}
        for file in left:
            if file.exists():
                with pytest.raises(ManifestError, match=r"not finished.*sonotune data split"):
                    read_manifest(file)
                lines = file.read_text("utf-8").splitlines()
                found[file.stem] = frozenset(json.loads(line)["id"] for line in lines)
        return any(found.items() <= state.items() for state in states)

    killer.at_every_point([*words, "--seed", "3"], work, half=refused)
    assert halves > 0
    assert split_ids(manifest.parent) == states[1]


def test_a_tokenizer_is_there_whole_or_not_at_all(killer: Killer, work: Path):
    """Half of one would be refused by the next call, which wants an empty folder."""
    words = ["data", "tokenizer", str(speech(work / "corpus")), str(work / "tokens"), "--kind", "characters"]
    killer.at_every_point(words, work)
    killer.at_every_point([*words[:-1], "bpe", "--vocab-size", "30", "--overwrite"], work)


# --- report, allocate, compose, export -----------------------------------------------------------

QUICK = pytest.param(True, id="sampled")
EVERY = pytest.param(False, id="every", marks=pytest.mark.slow)


def test_a_report_is_the_old_one_or_the_new_one(killer: Killer, work: Path, trained: Path):
    run = work / "run"
    shutil.copytree(trained, run)
    (run / "report.html").write_text("an older report")
    killer.at_every_point(["report", str(run)], work)


@pytest.mark.parametrize("sampled", [QUICK, EVERY])
def test_an_allocation_is_there_whole_or_not_at_all(
    model_killer: Killer, work: Path, tiny_whisper: Path, words: list[str], sampled: bool
):
    asked = ["allocate", f"model={tiny_whisper}", *words, "allocation.clips=4", "--out", str(work / "ranks")]
    model_killer.at_every_point(asked, work, sampled=sampled)
    assert {"ranks.json", "entropy.json"} <= {path.name for path in (work / "ranks").iterdir()}


@pytest.mark.slow
def test_an_allocation_among_other_files_ends_with_what_says_that_it_is_whole(
    model_killer: Killer, work: Path, tiny_whisper: Path, words: list[str]
):
    asked = ["allocate", f"model={tiny_whisper}", *words, "allocation.clips=4", "--out", str(work)]
    before = tree(work)

    def begun(folder: Path) -> bool:
        return "ranks.json" not in tree(folder) and before.items() <= tree(folder).items()

    model_killer.at_every_point(asked, work, sampled=True, half=begun)


@pytest.mark.parametrize("sampled", [QUICK, EVERY])
def test_a_composed_model_is_there_whole_or_not_at_all(
    model_killer: Killer, work: Path, tiny_whisper: Path, sampled: bool
):
    parts = [f"encoder={tiny_whisper}", "language_model=assets:qwen3-asr-nano"]
    model_killer.at_every_point(["compose", str(work / "model"), *parts], work, sampled=sampled)


@pytest.mark.parametrize("sampled", [QUICK, EVERY])
def test_an_export_is_there_whole_or_not_at_all(model_killer: Killer, work: Path, trained: Path, sampled: bool):
    model_killer.at_every_point(["export", str(trained), str(work / "export"), "--no-parity"], work, sampled=sampled)
    assert {"README.md", "model.safetensors"} <= {path.name for path in (work / "export").iterdir()}


@pytest.mark.parametrize("sampled", [QUICK, EVERY])
@pytest.mark.parametrize("exchange", [True, False], ids=["swapped at once", "in two steps"])
def test_an_export_replaces_an_earlier_one_as_a_whole(
    model_killer: Killer, work: Path, trained: Path, sampled: bool, exchange: bool
):
    """By an adapter, which has other files."""
    words = ["export", str(trained), str(work / "export"), "--no-parity"]
    assert model_killer.run(words, work).code == 0
    old = tree(work / "export")

    def set_aside(folder: Path) -> bool:
        aside = list(folder.glob(".export.*.tmp.old"))
        return not exchange and not (folder / "export").exists() and [tree(one) for one in aside] == [old]

    model_killer.at_every_point(
        [*words, "--adapter", "--overwrite"], work, sampled=sampled, exchange=exchange, half=set_aside
    )
    assert (work / "export" / "adapter_model.safetensors").is_file()
    assert not (work / "export" / "model.safetensors").exists()


@pytest.mark.slow
def test_an_export_with_its_comparison_leaves_the_record_of_the_run_whole(
    model_killer: Killer, work: Path, trained: Path
):
    """The export, then the record of the run and its report: each is whole, and the next export writes them again."""
    run = work / "run"
    shutil.copytree(trained, run)

    def recorded(folder: Path) -> bool:
        record = json.loads((folder / "run" / "run.json").read_text("utf-8"))
        return record["status"] == "finished" and (folder / "export" / "parity.json").is_file()

    model_killer.at_every_point(
        ["export", str(run), str(work / "export"), "--parity-clips", "2", "--overwrite"],
        work,
        sampled=True,
        half=recorded,
    )
