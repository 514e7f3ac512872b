"""Comparison of finished runs and of files of predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from sacrebleu.metrics import BLEU, CHRF

from sonotune.errors import ConfigError, ManifestError, RunDirectoryError, TextError
from sonotune.evaluation.compare import compare
from sonotune.evaluation.evaluate import write_predictions
from sonotune.metrics.error_rate import cer, wer
from sonotune.runs import read_predictions
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.transcribe import Transcribe
from sonotune.types import Clip, Prediction

REFERENCES = ["one two three", "four five", "six", "seven eight nine ten", "שלוש ארבע", "one", "two two"] * 4
GOOD = [text if index % 5 else "one" for index, text in enumerate(REFERENCES)]
BAD = ["" if index % 3 == 0 else "one two" for index, _ in enumerate(REFERENCES)]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes predictions as a run does: name, hypotheses -> the file."""

    def build(name: str, hypotheses: Sequence[str], *, run: bool = False, **changes: Any) -> Path:
        clips = [
            Clip(
                id=f"c{index}",
                path=Path("x.wav"),
                duration_s=1.0 + index % 4,
                text=text,
                speaker=f"s{index % 7}",
                domain=("phone", "studio")[index % 2],
            )
            for index, text in enumerate(changes.get("references", REFERENCES))
        ]
        predictions = [Prediction(clip_id=clip.id, text=text) for clip, text in zip(clips, hypotheses, strict=True)]
        path = tmp_path / name / "predictions" / "test.jsonl" if run else tmp_path / f"{name}.jsonl"
        write_predictions(path, Transcribe(None, TaskSettings()), predictions, clips)  # type: ignore[arg-type]
        return path.parent.parent if run else path

    return build


def rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    rows = [change(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row is not None), "utf-8")
    return path


def test_differences_are_those_of_the_scores(write: Write):
    found = compare([write("a", BAD)], [write("b", GOOD)], resamples=500)
    for name, score in (("wer", wer), ("cer", cer)):
        difference = found.differences[name]
        assert difference.first == pytest.approx(score(REFERENCES, BAD, bootstrap=0).value)
        assert difference.second == pytest.approx(score(REFERENCES, GOOD, bootstrap=0).value)
        assert difference.value == pytest.approx(difference.second - difference.first)
        assert difference.low <= difference.value <= difference.high < 0
        assert difference.p < 0.05
        assert (difference.resampled, difference.blocks, difference.count) == ("speaker", 7, len(REFERENCES))
    assert found.primary.name == "wer"
    body = found.to_json()
    assert {"value", "low", "high", "count", "unit", "p"} <= body["difference"]["wer"].keys()
    assert body["minimum_detectable"] == found.primary.minimum_detectable > 0
    assert found.primary.minimum_detectable_formula is not None
    assert found.matched_pairs is not None
    assert found.matched_pairs.z < 0
    json.dumps(body, allow_nan=False)


def test_the_other_way_round_is_the_same_with_another_sign(write: Write):
    a, b = write("a", BAD), write("b", GOOD)
    there, back = compare([a], [b], resamples=500).primary, compare([b], [a], resamples=500).primary
    assert there.value == pytest.approx(-back.value)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_slices_of_every_property_with_corrected_p(write: Write):
    found = compare([write("a", BAD)], [write("b", GOOD)], resamples=200)
    assert {row["by"] for row in found.slices} == {"domain", "duration", "domain, duration", "speaker"}
    domains = [row for row in found.slices if row["by"] == "domain"]
    assert [row["clips"] for row in domains] == [14, 14]
    assert sum(row["difference"]["wer"]["count"] for row in domains) == len(REFERENCES)
    assert all(row["difference"]["wer"]["p_holm"] >= row["difference"]["wer"]["p"] for row in domains)
    speakers = [row for row in found.slices if row["by"] == "speaker"]
    assert all(not row["difference"] for row in speakers)  # 4 clips each: too few to say anything
    assert compare([write("a", BAD)], [write("b", GOOD)], resamples=200, slices=False).slices == []


def test_runs_are_taken_by_their_predictions_and_seeds_are_resampled(write: Write):
    runs = [[write(f"{name}{seed}", texts, run=True) for seed in range(2)] for name, texts in (("a", BAD), ("b", GOOD))]
    found = compare(runs[0], runs[1], resamples=200, same_seeds=True)
    assert found.primary.seeds == (2, 2)
    assert found.matched_pairs is None
    assert found.files[0][0] == runs[0][0] / "predictions" / "test.jsonl"


def test_order_of_the_lines_changes_nothing(write: Write):
    a, b = write("a", BAD), write("b", GOOD)
    straight = compare([a], [b], resamples=200).primary
    lines = b.read_text("utf-8").splitlines()
    b.write_text("\n".join(reversed(lines)) + "\n", "utf-8")
    assert compare([a], [b], resamples=200).primary == straight


def test_classes_are_compared_by_accuracy(tmp_path: Path):
    def write_classes(name: str, wrong: int) -> Path:
        path = tmp_path / f"{name}.jsonl"
        rows = [
            {
                "id": f"c{i}",
                "labels": ["x"],
                "decided": ["y" if i % wrong == 0 else "x"],
                "scores": {"x": 0.5},
                "duration_s": 1.0,
                "speaker": f"s{i % 10}",
            }
            for i in range(60)
        ]
        rows[59] |= {"decided": [], "scores": {}}  # could not be read
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    found = compare([write_classes("a", 2)], [write_classes("b", 6)], resamples=500)
    difference = found.differences["accuracy"]
    assert list(found.differences) == ["accuracy"]
    assert difference.first == pytest.approx(29 / 60)
    assert difference.second == pytest.approx(49 / 60)
    assert (difference.better, difference.value > 0, difference.low > 0) == ("higher", True, True)
    assert difference.discordant == pytest.approx(20 / 60)
    assert found.matched_pairs is None


def test_unlike_clips_are_refused(write: Write):
    a, b = write("a", BAD), write("b", GOOD)
    rewrite(b, lambda row: None if row["id"] == "c3" else row | {"id": row["id"].replace("c4", "d4")})
    with pytest.raises(ManifestError, match=r"same clips; found \d only in .*c3.* and 1 only in .*d4") as caught:
        compare([a], [b])
    assert caught.value.exit_code == 2


def test_unlike_references_are_refused(write: Write):
    a, b = write("a", BAD), write("b", GOOD)
    rewrite(b, lambda row: row | {"scored_reference": "other"} if row["id"] == "c2" else row)
    with pytest.raises(ManifestError, match=r"1 of 28 clips have another reference.*'c2'"):
        compare([a], [b])
    rewrite(b, lambda row: row | {"scored_reference": "a" * 10**5} if row["id"] == "c2" else row)
    with pytest.raises(ManifestError, match=r"'a{70,80}\.\.\. and"):
        compare([a], [b])


def test_ids_that_stand_twice_are_refused(write: Write):
    a, b = write("a", BAD), write("b", GOOD)
    rewrite(b, lambda row: row | {"id": "c1"} if row["id"] == "c2" else row)
    with pytest.raises(ManifestError, match="'c1' more than once"):
        compare([a], [b])


def test_too_few_clips_are_refused(write: Write):
    few = REFERENCES[:4]
    with pytest.raises(ManifestError, match="at least 5 clips"):
        compare([write("a", few, references=few)], [write("b", few, references=few)])


def test_clips_without_a_truth_are_left_out(write: Write):
    def untold(row: dict[str, Any]) -> dict[str, Any]:
        silent = {"reference": None, "scored_reference": None, "scored_hypothesis": None}
        return row | silent if row["id"] == "c0" else row

    found = compare([rewrite(write("a", BAD), untold)], [rewrite(write("b", GOOD), untold)], resamples=200)
    assert found.clips == len(REFERENCES) - 1

    def unsaid(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"reference": None, "scored_reference": None}

    with pytest.raises(TextError, match="nothing to compare"):
        compare([rewrite(write("a", BAD), unsaid)], [rewrite(write("b", GOOD), unsaid)])


def confident(path: Path, sure: Callable[[bool], float]) -> Path:
    """Ten words a clip, right or wrong in turn, as sure as told."""

    def change(row: dict[str, Any]) -> dict[str, Any]:
        rights = [(int(row["id"][1:]) + place) % 3 > 0 for place in range(10)]
        return row | {"words": [{"text": "x", "confidence": sure(one), "right": one} for one in rights]}

    return rewrite(path, change)


def test_word_confidences_are_compared_whole_and_by_slice(write: Write):
    first = confident(write("a", BAD), lambda right: 0.9)
    second = confident(write("b", BAD), lambda right: 0.9 if right else 0.1)
    found = compare([first], [second], resamples=200)
    assert list(found.differences) == ["wer", "cer", "ece", "auroc", "aurc"]
    assert found.primary.name == "wer"
    assert found.differences["auroc"].first == 0.5
    assert found.differences["auroc"].low > 0
    assert found.differences["ece"].high < 0
    phone = next(row for row in found.slices if row["value"] == "phone")
    assert {"ece", "auroc", "aurc"} <= phone["difference"].keys()
    assert phone["difference"]["ece"]["p_holm"] >= phone["difference"]["ece"]["p"]
    by_speaker = [row for row in found.slices if row["by"] == "speaker"]
    assert not any("ece" in row["difference"] for row in by_speaker)  # 40 words each
    with_seeds = compare([first, first], [second, second], resamples=100, slices=False)
    assert list(with_seeds.differences) == ["wer", "cer"]


@pytest.mark.parametrize(
    "words",
    [
        None,
        "one two",
        ["one"],
        [{"text": "one", "start": 0.1}],
        [{"right": True, "confidence": 1.5}],
        [{"right": 1, "confidence": 0.5}],
        [{"right": True, "confidence": float("nan")}],
    ],
)
def test_words_that_are_not_ours_are_left_alone(write: Write, words: Any):
    first = confident(write("a", BAD), lambda right: 0.9)
    second = rewrite(write("b", GOOD), lambda row: row if words is None else row | {"words": words})
    assert "ece" not in compare([first], [second], resamples=100).differences


def test_on_silence_alone_what_was_written_on_each_clip_is_compared(write: Write):
    silent = [""] * 12
    words = ["thank you", *silent[1:]]
    found = compare([write("a", words, references=silent)], [write("b", silent, references=silent)], resamples=200)
    assert found.differences["wer"].first == pytest.approx(2 / 12)
    assert found.differences["wer"].second == 0
    by_domain = {row["value"]: row["difference"]["wer"]["first"] for row in found.slices if row["by"] == "domain"}
    assert by_domain == {"phone": pytest.approx(2 / 6), "studio": 0.0}


def test_characters_decide_where_the_script_has_no_spaces(write: Write):
    references = ["今天天气很好", "明天下雨", "你好"] * 3
    a, b = (
        write(name, [text[:1] + other for text in references], references=references)
        for name, other in (("a", ""), ("b", "天"))
    )
    assert compare([a], [b], resamples=200).primary.name == "cer"
    assert compare([a], [b], primary="wer", resamples=200).primary.name == "wer"
    assert compare([write("c", BAD)], [write("d", GOOD)], primary="cer", resamples=200).primary.name == "cer"
    with pytest.raises(ConfigError, match="'accuracy' is not compared here; known for these clips: cer, wer"):
        compare([a], [b], primary="accuracy")


def test_what_is_not_there_or_no_prediction_is_named(write: Write, tmp_path: Path):
    a = write("a", BAD)
    with pytest.raises(RunDirectoryError, match=r"missing\.jsonl does not exist"):
        compare([a], [tmp_path / "missing.jsonl"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunDirectoryError, match="no predictions of test or after"):
        compare([a], [tmp_path / "empty"])
    run = write("run", GOOD, run=True)
    with pytest.raises(RunDirectoryError, match=r"in common: \S*empty has none\."):  # the one that lacks them
        compare([run], [tmp_path / "empty"])
    with pytest.raises(RunDirectoryError, match="run has test"):
        compare([run], [run], moment="before")
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text('{"id": "a"}\n[1]\n', "utf-8")
    with pytest.raises(RunDirectoryError, match=r"damaged\.jsonl:2"):
        read_predictions(damaged)


def test_runs_whose_texts_had_other_rules_are_told_apart(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    digests = {"a": "basic:00000000", "b": "basic:00000000", "c": "english:11111111", "old": None}

    class Record:
        def __init__(self, run: Path) -> None:
            detail = {"normalizer": digests[run.name]} if digests[run.name] else {}
            self.scores = {"test": {"wer": {"value": 0.1, "role": "primary", "detail": detail}}}

    monkeypatch.setattr("sonotune.evaluation.compare.read_record", Record)
    runs = {name: write(name, GOOD, run=True) for name in digests}
    for run in runs.values():
        (run / "run.json").write_text("{}", "utf-8")
    assert compare([runs["a"]], [runs["b"]], resamples=100).warnings == ()
    assert compare([runs["a"]], [runs["old"]], resamples=100).warnings == ()
    found = compare([runs["a"]], [runs["b"], runs["c"]], resamples=100)
    [warning] = found.warnings
    assert "basic:00000000" in warning
    assert f"english:11111111 in {runs['c']}" in warning
    assert found.to_json()["warnings"] == [warning]


def test_further_scores_are_compared_clip_by_clip(write: Write):
    sides = write("a", BAD), write("b", GOOD)
    found = compare([sides[0]], [sides[1]], scores=["bleu", "chrf"], resamples=500)
    assert list(found.differences) == ["wer", "cer", "bleu", "chrf"]
    for name, known in (("bleu", BLEU()), ("chrf", CHRF())):
        difference = found.differences[name]
        assert difference.first == pytest.approx(known.corpus_score(BAD, [REFERENCES]).score)
        assert difference.second == pytest.approx(known.corpus_score(GOOD, [REFERENCES]).score)
        assert difference.low <= difference.value <= difference.high
        assert (difference.unit, difference.better, difference.resampled) == ("points", "higher", "speaker")
        assert difference.to_json()["title"] in ("BLEU", "chrF")
    assert compare([sides[0]], [sides[1]], primary="chrf", resamples=100).primary.name == "chrf"
    json.dumps(found.to_json(), allow_nan=False)


def test_a_score_that_was_not_measured_is_not_compared(write: Write):
    sides = write("a", BAD), write("b", GOOD)
    assert list(compare([sides[0]], [sides[1]], scores=["perplexity"], resamples=100).differences) == ["wer", "cer"]
    tokens = {"label_tokens": {"nll": 3.0, "count": 4, "right": 3}}
    for side in sides:
        rewrite(side, lambda row: row | tokens)
    found = compare([sides[0]], [sides[1]], scores=["perplexity"], resamples=100).differences["perplexity"]
    assert (found.first, found.value, found.unit) == (pytest.approx(math.exp(0.75)), 0.0, "")


def test_label_tokens_that_are_none_are_refused(write: Write):
    first, second = write("a", BAD), write("b", GOOD)
    rewrite(second, lambda row: row | {"label_tokens": {"nll": "a lot", "count": -1}})
    with pytest.raises(RunDirectoryError, match="label_tokens"):
        compare([first], [second], scores=["perplexity"], resamples=100)
