"""Predictions on disk are combined where they are of the same clips, and refused by name where they are not."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sonotune import cli
from sonotune.data.text import BASIC, IDENTITY
from sonotune.errors import ConfigError, ManifestError, RunDirectoryError
from sonotune.evaluation.combination import CombinationSettings
from sonotune.evaluation.evaluate import write_predictions
from sonotune.evaluation.stored import combine_stored, read_members
from sonotune.runs import read_predictions
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.types import Clip, Prediction, RecognizedWord

TRUTH = ["one two three", "four five six", "שלוש ארבע חמש", "seven eight nine", "", "ten one two"] * 3
ROVER = CombinationSettings()
Write = Callable[..., Path]


def wrong_at(place: int) -> list[str]:
    """Every text with one word wrong, at another place for each member."""
    return [
        " ".join(f"wrong{place}" if index == place else word for index, word in enumerate(text.split()))
        for text in TRUTH
    ]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes predictions as `sonotune evaluate --out` does: name, hypotheses -> the file."""

    def build(
        name: str,
        hypotheses: Sequence[str],
        *,
        truth: Sequence[str | None] = TRUTH,
        confidence: float | None = None,
        duration_s: float = 1.0,
    ) -> Path:
        clips = [
            Clip(id=f"c{index}", path=Path("x.wav"), duration_s=duration_s, text=text, speaker=f"s{index}")
            for index, text in enumerate(truth)
        ]
        predictions = [
            Prediction(
                clip_id=clip.id,
                text=text,
                words=None
                if confidence is None
                else tuple(RecognizedWord(text=word, logprobs=(-0.1,), confidence=confidence) for word in text.split()),
            )
            for clip, text in zip(clips, hypotheses, strict=True)
        ]
        path = tmp_path / f"{name}.jsonl"
        write_predictions(path, Transcribe(None, TaskSettings()), predictions, clips)  # type: ignore[arg-type]
        return path

    return build


def rewrite(path: Path, **changes: Any) -> Path:
    """Changes the first row of a file."""
    first, *others = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), **changes}), *others]) + "\n", "utf-8")
    return path


def combine(*words: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as caught:
        cli.main(["combine", *map(str, words)])
    return int(caught.value.code or 0), out.getvalue(), err.getvalue()


def test_three_systems_with_one_error_each_are_combined_to_the_truth_and_the_gain_is_shown(
    write: Write, tmp_path: Path
) -> None:
    files = [write(name, wrong_at(place)) for place, name in enumerate("abc")]
    code, said, err = combine(*files, "--out", tmp_path / "d.jsonl", "--json")
    assert code == 0, err
    body = json.loads(said)
    assert body["scores"]["wer"]["value"] == 0.0
    assert body["verdict"] == "gain"
    assert body["difference"]["high"] < 0
    assert [row["hypothesis"] for row in read_predictions(tmp_path / "d.jsonl")] == TRUTH
    found = json.loads((tmp_path / "d.jsonl").read_text("utf-8").splitlines()[0])
    stored = json.loads(files[0].read_text("utf-8").splitlines()[0])
    assert found.keys() == stored.keys()  # any other command reads it as well
    assert found["edits"] == {**stored["edits"], "substitutions": 0, "hits": 3}


def test_equal_systems_gain_nothing_and_that_is_printed(write: Write, tmp_path: Path) -> None:
    files = [write(name, wrong_at(1)) for name in "abc"]
    code, said, err = combine(*files, "--out", tmp_path / "d.jsonl", "--method", "mbr")
    assert code == 0, err
    assert "no gain was shown" in said
    assert "the interval includes zero" in said
    assert said.count("two votes") == 2
    assert [row["hypothesis"] for row in read_predictions(tmp_path / "d.jsonl")] == wrong_at(1)


def test_clips_without_references_are_combined_and_not_scored(write: Write, tmp_path: Path) -> None:
    files = [write(name, wrong_at(place), truth=[None] * len(TRUTH)) for place, name in enumerate("abc")]
    code, said, err = combine(*files, "--out", tmp_path / "d.jsonl")
    assert code == 0, err
    assert "not scored" in said
    assert "gain" not in said
    assert [row["hypothesis"] for row in read_predictions(tmp_path / "d.jsonl")] == TRUTH


def test_confidences_on_disk_vote(write: Write) -> None:
    files = [write("a", wrong_at(0), confidence=0.2), write("b", wrong_at(0), confidence=0.2)]
    members = read_members([*files, write("c", TRUTH, confidence=0.9)])
    by_confidence = CombinationSettings(deletion_confidence=0.5)
    assert [row["hypothesis"] for row in combine_stored(members, BASIC, by_confidence)] == TRUTH
    assert [row["hypothesis"] for row in combine_stored(members, BASIC, ROVER)] == wrong_at(0)
    members = read_members([*files, write("c", TRUTH)])
    with pytest.raises(ConfigError, match="no confidences"):
        combine_stored(members, BASIC, by_confidence)


def test_predictions_of_other_clips_are_refused_by_name(write: Write, tmp_path: Path) -> None:
    first = write("a", TRUTH)
    for changes, match in (
        ({"id": "other"}, "only in .*other"),
        ({"scored_reference": "another"}, "another reference .*'c0'"),
        ({"duration_s": 9.0}, "'c0' is 1.00 s long .* 9.00 s"),
        ({"decided": ["dog"], "labels": []}, "classes|another reference"),
    ):
        with pytest.raises((ManifestError, ConfigError), match=match):
            read_members([first, rewrite(write("b", TRUTH), **changes)])
    with pytest.raises(RunDirectoryError, match="does not exist"):
        read_members([first, tmp_path / "absent.jsonl"])


def test_runs_that_were_scored_on_other_data_are_refused(write: Write, tmp_path: Path, monkeypatch: Any) -> None:
    places = []
    for name in "ab":
        (tmp_path / f"run-{name}" / "predictions").mkdir(parents=True)
        write(name, TRUTH).rename(tmp_path / f"run-{name}" / "predictions" / "test.jsonl")
        (tmp_path / f"run-{name}" / "run.json").write_text("{}")
        places.append(tmp_path / f"run-{name}")

    class Record:
        def __init__(self, run: Path) -> None:
            self.data_digest = {"test": run.name, "eval": "same"}

    monkeypatch.setattr("sonotune.evaluation.stored.read_record", Record)
    with pytest.raises(ManifestError, match=r"same data.*run-a in .*run-b in"):
        read_members(places)


def test_another_normaliser_than_that_of_the_scores_is_refused(write: Write) -> None:
    members = read_members([write(name, ["One, two."] * len(TRUTH)) for name in "abc"])
    with pytest.raises(ConfigError, match="--text-scoring"):
        combine_stored(members, IDENTITY, ROVER)


def test_too_few_systems_and_unknown_words_are_refused(write: Write, tmp_path: Path) -> None:
    files, out = [write(name, TRUTH) for name in "abc"], ("--out", tmp_path / "d.jsonl")
    for words, match in (
        ((files[0], *out), "at least two members"),
        ((*files[:2], *out), "outvote"),
        ((*files, *out, "--method", "vote"), "--method 'vote' is not known"),
        ((*files, *out, "--votes", "all"), "--votes 'all' is not known"),
        ((*files, *out, "--votes", "confidence", "--method", "mbr"), "is of rover"),
        ((*files, "--out", tmp_path), "is a folder"),
    ):
        code, _, err = combine(*words)
        assert code == 2
        assert match in err
        assert not (tmp_path / "d.jsonl").exists()
