"""Classification scores are those of scikit-learn where it has them, and an absent class is absent."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from sonotune.errors import TextError
from sonotune.metrics.classification import class_report, classification_scores, confusion

LABELS = ["flam", "drag", "roll", "diddle"]


def random_case(seed: int, clips: int = 120, *, multi: bool = False) -> tuple[list[list[str]], list[dict[str, float]]]:
    rng = np.random.default_rng(seed)
    truths, scores = [], []
    for _ in range(clips):
        truth = [label for label in LABELS if rng.random() < 0.4] if multi else [LABELS[int(rng.integers(3))]]
        given = rng.random(4).round(2)  # rounded, so that there are ties
        for label in truth:
            given[LABELS.index(label)] += 0.3
        truths.append(truth)
        scores.append(dict(zip(LABELS, (given / given.sum() if not multi else given / 1.3).tolist(), strict=True)))
    return truths, scores


@pytest.mark.parametrize("seed", range(3))
def test_single_labels_as_scikit_learn_has_them(seed: int):
    truths, scores = random_case(seed)
    found = classification_scores(truths, scores, LABELS, bootstrap=200)
    true = [truth[0] for truth in truths]
    decided = [max(row, key=lambda label: row[label]) for row in scores]
    present = sorted(set(true))
    assert found["accuracy"].value == pytest.approx(np.mean([a == b for a, b in zip(true, decided, strict=True)]))
    assert found["f1_macro"].value == pytest.approx(f1_score(true, decided, labels=present, average="macro"))
    wanted = [average_precision_score([label == t for t in true], [row[label] for row in scores]) for label in present]
    assert found["map"].value == pytest.approx(np.mean(wanted))
    for score in found.values():
        assert score.low <= score.value <= score.high
        assert score.better == "higher"
        assert score.count == 120
        assert score.detail["classes"] == 3


def test_several_labels_as_scikit_learn_has_them():
    truths, scores = random_case(7, multi=True)
    found = classification_scores(truths, scores, LABELS, multi_label=True, threshold=0.6, bootstrap=50)
    truth = np.array([[label in row for label in LABELS] for row in truths])
    given = np.array([[row[label] for label in LABELS] for row in scores])
    assert found["f1_macro"].value == pytest.approx(f1_score(truth, given >= 0.6, average="macro"))
    assert found["map"].value == pytest.approx(average_precision_score(truth, given, average="macro"))
    assert found["accuracy"].value == pytest.approx((truth == (given >= 0.6)).all(axis=1).mean())


def test_a_class_that_the_test_set_lacks_is_absent_and_not_zero():
    truths = [["flam"], ["flam"], ["drag"]]
    scores = [{"flam": 0.9, "drag": 0.1}, {"roll": 1.0}, {"drag": 0.8, "flam": 0.2}]
    rows = {row.label: row for row in class_report(truths, scores, LABELS)}
    assert (rows["roll"].support, rows["roll"].predicted, rows["roll"].f1, rows["roll"].recall) == (0, 1, None, None)
    assert rows["roll"].precision == 0.0
    assert rows["diddle"].to_json() == {
        "label": "diddle",
        "support": 0,
        "predicted": 0,
        "precision": None,
        "recall": None,
        "f1": None,
    }
    assert rows["flam"].recall == 0.5
    assert rows["flam"].f1 == pytest.approx(2 / 3)
    assert classification_scores(truths, scores, LABELS)["f1_macro"].value == pytest.approx((2 / 3 + 1) / 2)


def test_all_right_keeps_a_width_and_speakers_are_resampled_whole():
    truths = [[LABELS[index % 4]] for index in range(40)]
    scores = [{truth[0]: 1.0} for truth in truths]
    score = classification_scores(truths, scores, LABELS)["accuracy"]
    assert (score.value, score.high) == (1.0, 1.0)
    assert 0.85 < score.low < 0.95
    wrong = [scores[0]] * 40
    clips = classification_scores(truths, wrong, LABELS, groups=[None] * 40)["accuracy"]
    assert clips.detail["resampled"] == "clip"
    speakers = classification_scores(truths, wrong, LABELS, groups=[index % 8 for index in range(40)])["accuracy"]
    assert speakers.detail["resampled"] == "speaker"
    assert speakers.value == clips.value
    assert speakers.high - speakers.low > clips.high - clips.low  # a speaker says one label here


def test_the_confusion_matrix_has_what_was_so_in_its_rows():
    matrix = confusion(["flam", "flam", "drag"], ["flam", "drag", "drag"], LABELS)
    assert matrix.shape == (4, 4)
    assert matrix[0].tolist() == [1, 1, 0, 0]
    assert matrix[1].tolist() == [0, 1, 0, 0]
    assert matrix.sum() == 3


@pytest.mark.parametrize(
    ("truths", "scores", "said"),
    [
        ([], [], "at least one clip"),
        ([["flam"]], [], "found 0 for 1"),
        ([["ruff"]], [{"flam": 1.0}], "no class 'ruff'"),
        ([["flam"]], [{"ruff": 1.0}], "no class 'ruff'"),
        ([["flam", "drag"]], [{"flam": 1.0}], "exactly one"),
        ([[]], [{"flam": 1.0}], "exactly one"),
    ],
)
def test_what_does_not_fit_is_refused(truths: list[list[str]], scores: list[dict[str, float]], said: str):
    with pytest.raises(TextError, match=said):
        classification_scores(truths, scores, LABELS)
