"""Classification: losses by hand, targets of mixed clips, weights of classes, what is refused and how it is scored."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sonotune.errors import ManifestError
from sonotune.features.batching import Batch, pad_targets
from sonotune.tasks.base import TaskSettings
from sonotune.tasks.classify import Classify
from sonotune.types import Clip, Prediction

LABELS = ("drag", "flam", "roll")
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, -3.0], [-1.5, 1.5, 1.0], [0.0, 4.0, -4.0]])


class Given:
    """A family whose logits are given."""

    name, task = "given", "classify"

    def __init__(self, logits: Tensor) -> None:
        self.made = logits

    def logits(self, loaded: Any, batch: Batch) -> Tensor:
        return self.made


def task(*, logits: Tensor = LOGITS, **settings: Any) -> Classify:
    return Classify(Given(logits), TaskSettings(**settings))  # type: ignore[arg-type]


def model(labels: Sequence[str] = LABELS, *, new: bool = False) -> Any:
    return SimpleNamespace(labels=tuple(labels), new_outputs=tuple(labels) if new else (), checkpoint="given")


def clip(name: str, *labels: str, speaker: str | None = None) -> Clip:
    return Clip(id=name, path=Path("x.wav"), duration_s=1.0, label=labels, speaker=speaker)


def clips_of(*labels: Sequence[str]) -> list[Clip]:
    return [clip(f"c{row}", *own) for row, own in enumerate(labels)]


def batch_of(*targets: Sequence[int], mixed: Sequence[Sequence[int]] = (), shares: Sequence[float] = ()) -> Batch:
    ids, sizes = pad_targets([np.array(own, dtype=np.int64) for own in targets])
    others = pad_targets([np.array(own, dtype=np.int64) for own in mixed])[0] if mixed else None
    return Batch(
        inputs=torch.zeros(len(targets), 4, 2),
        input_lengths=torch.full((len(targets),), 4),
        targets=ids,
        target_lengths=sizes,
        clips=tuple(clip(f"c{row}") for row in range(len(targets))),
        mixed_targets=others,
        mixed_shares=torch.tensor(shares) if mixed else None,
        context="cut",
    )


def log_softmax(row: Tensor) -> list[float]:
    total = math.log(sum(math.exp(value) for value in row.tolist()))
    return [value - total for value in row.tolist()]


def bce(logit: float, target: float) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -(target * math.log(probability) + (1 - target) * math.log(1 - probability))


# --- losses --------------------------------------------------------------------------------------


def test_one_class_a_clip_is_cross_entropy():
    losses = task().loss(model(), batch_of([0], [2], [1], [1]))
    expected = [-log_softmax(LOGITS[row])[index] for row, index in enumerate([0, 2, 1, 1])]
    assert losses.sums.tolist() == pytest.approx(expected, rel=1e-5)
    assert losses.counts.tolist() == [1, 1, 1, 1]


def test_several_classes_are_the_mean_binary_cross_entropy():
    targets = [[0, 2], [1], [], [0, 1, 2]]
    losses = task(multi_label=True).loss(model(), batch_of(*targets))
    expected = [
        sum(bce(float(LOGITS[row, index]), float(index in own)) for index in range(3)) / 3
        for row, own in enumerate(targets)
    ]
    assert losses.sums.tolist() == pytest.approx(expected, rel=1e-5)
    assert losses.counts.tolist() == [1, 1, 1, 1]


def test_clips_without_any_class_are_taught_none():
    losses = task(logits=LOGITS[:2], multi_label=True).loss(model(), batch_of([], []))
    expected = [sum(bce(float(logit), 0.0) for logit in LOGITS[row]) / 3 for row in range(2)]
    assert losses.sums.tolist() == pytest.approx(expected, rel=1e-5)


def test_smoothing_of_one_class():
    losses = task().loss(model(), batch_of([0], [2], [1], [1]), label_smoothing=0.3)
    expected = []
    for row, index in enumerate([0, 2, 1, 1]):
        scores = log_softmax(LOGITS[row])
        expected.append(-sum((0.7 * (place == index) + 0.1) * score for place, score in enumerate(scores)))
    assert losses.sums.tolist() == pytest.approx(expected, rel=1e-5)


def test_smoothing_of_several_classes_pulls_towards_one_half():
    losses = task(multi_label=True).loss(model(), batch_of([0, 2], [1], [], [0]), label_smoothing=0.2)
    expected = [
        sum(bce(float(LOGITS[row, index]), 0.9 if index in own else 0.1) for index in range(3)) / 3
        for row, own in enumerate([[0, 2], [1], [], [0]])
    ]
    assert losses.sums.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_batch_is_its_clips_at_half_precision_too():
    whole = task(logits=LOGITS.bfloat16()).loss(model(), batch_of([0], [2], [1], [1]))
    assert whole.sums.dtype == torch.float32
    for row, index in enumerate([0, 2, 1, 1]):
        alone = task(logits=LOGITS[row : row + 1].bfloat16()).loss(model(), batch_of([index]))
        assert float(alone.total) == pytest.approx(float(whole.sums[row]), rel=1e-6)


@pytest.mark.parametrize("multi_label", [False, True])
def test_gradients_reach_every_logit(multi_label: bool):
    logits = LOGITS.clone().requires_grad_(True)
    task(logits=logits, multi_label=multi_label).loss(model(), batch_of([0], [2], [1], [1])).total.backward()
    assert logits.grad is not None
    assert bool((logits.grad != 0).all())


# --- mixed clips ---------------------------------------------------------------------------------


def test_mixed_clips_are_taught_both_classes_in_their_shares():
    shares = [0.25, 0.0, 0.5, 0.1]
    batch = batch_of([0], [2], [1], [1], mixed=[[2], [2], [0], [1]], shares=shares)
    expected = []
    for row, (own, other) in enumerate(zip([0, 2, 1, 1], [2, 2, 0, 1], strict=True)):
        scores = log_softmax(LOGITS[row])
        expected.append(-(1 - shares[row]) * scores[own] - shares[row] * scores[other])
    assert task().loss(model(), batch).sums.tolist() == pytest.approx(expected, rel=1e-5)


def test_mixed_clips_of_several_classes():
    shares = [0.25, 0.0, 0.5, 0.1]
    own, other = [[0, 2], [1], [], [0]], [[1], [1], [0, 1], [0, 1, 2]]
    batch = batch_of(*own, mixed=other, shares=shares)
    expected = []
    for row, share in enumerate(shares):
        soft = [(1 - share) * (index in own[row]) + share * (index in other[row]) for index in range(3)]
        expected.append(sum(bce(float(LOGITS[row, index]), soft[index]) for index in range(3)) / 3)
    assert task(multi_label=True).loss(model(), batch).sums.tolist() == pytest.approx(expected, rel=1e-5)


def test_mixing_and_smoothing_together():
    batch = batch_of([0], mixed=[[2]], shares=[0.4])
    scores = log_softmax(LOGITS[0])
    soft = [0.8 * part + 0.2 / 3 for part in (0.6, 0.0, 0.4)]
    expected = -sum(part * score for part, score in zip(soft, scores, strict=True))
    found = task(logits=LOGITS[:1]).loss(model(), batch, label_smoothing=0.2)
    assert float(found.total) == pytest.approx(expected, rel=1e-5)


def test_parts_of_a_mixed_batch_make_the_whole():
    batch = batch_of([0], [2], [1], [1], mixed=[[2], [2], [0], [1]], shares=[0.25, 0.0, 0.5, 0.1])
    whole = task().loss(model(), batch).sums
    parts = [
        task(logits=logits).loss(model(), part).sums
        for part, logits in zip(batch.split(2), (LOGITS[:2], LOGITS[2:]), strict=True)
    ]
    assert torch.equal(torch.cat(parts), whole)


# --- weights of classes --------------------------------------------------------------------------


def weights_of(made: Classify, classes: int) -> list[float]:
    """What a clip of each class weighs, from the losses of indifferent logits."""
    made.family = Given(torch.zeros(classes, classes))  # type: ignore[assignment]
    sums = made.loss(model(LABELS[:classes]), batch_of(*[[index] for index in range(classes)])).sums
    return (sums / math.log(classes)).tolist()


def test_balanced_classes_weigh_the_same_and_a_clip_one_on_average():
    made = task(class_weights="balanced")
    counts = {"drag": 6, "flam": 3, "roll": 1}
    prepared = made.prepare(model(), clips_of(*[[label] for label, count in counts.items() for _ in range(count)]))
    assert len(prepared.clips) == 10
    weights = weights_of(made, 3)
    totals = [weight * counts[label] for weight, label in zip(weights, LABELS, strict=True)]
    assert totals == pytest.approx([10 / 3] * 3, rel=1e-5)
    assert sum(totals) / 10 == pytest.approx(1.0, rel=1e-5)


def test_a_class_without_training_clips_upsets_no_weight():
    made = task(class_weights="balanced")
    made.prepare(model(), clips_of(["drag"], ["drag"], ["drag"], ["roll"]))
    weights = weights_of(made, 3)
    assert weights[0] * 3 == pytest.approx(weights[2], rel=1e-5)
    assert (3 * weights[0] + weights[2]) / 4 == pytest.approx(1.0, rel=1e-5)
    assert math.isfinite(weights[1])


def test_clips_that_are_left_out_weigh_nothing():
    made = task(class_weights="balanced")
    made.prepare(model(), clips_of(["drag"], ["roll"], ["flam"], ["drag", "roll"], []))
    assert weights_of(made, 3) == pytest.approx([1.0, 1.0, 1.0], rel=1e-5)


def test_without_weights_every_clip_weighs_one():
    made = task()
    made.prepare(model(), clips_of(["drag"], ["drag"], ["roll"]))
    assert weights_of(made, 3) == pytest.approx([1.0, 1.0, 1.0], rel=1e-5)


def test_weights_of_mixed_clips_go_with_each_class():
    made = task(logits=LOGITS[:1], class_weights="balanced")
    made.prepare(model(), clips_of(["drag"], ["drag"], ["drag"], ["roll"]))
    scores = log_softmax(LOGITS[0])
    found = made.loss(model(), batch_of([0], mixed=[[2]], shares=[0.25])).total
    assert float(found) == pytest.approx(-(0.75 * 4 / 6 * scores[0] + 0.25 * 4 / 2 * scores[2]), rel=1e-5)


def test_balanced_weights_of_several_classes():
    made = task(logits=torch.zeros(1, 3), multi_label=True, class_weights="balanced")
    made.prepare(model(), clips_of(["drag", "flam"], ["drag"], ["drag", "roll"], ["drag"]))
    found = made.loss(model(), batch_of([0])).total  # 4, 1 and 1 of 6 labels
    assert float(found) == pytest.approx(math.log(2) * (6 / 12 + 6 / 3 + 6 / 3) / 3, rel=1e-5)


# --- what can be learned from --------------------------------------------------------------------


def test_classes_are_numbered_as_the_models():
    clips = clips_of(["roll"], ["drag"], ["flam"])
    prepared = task().prepare(model(), clips)
    assert [ids.tolist() for ids in prepared.targets] == [[2], [0], [1]]
    assert prepared.clips == tuple(clips)
    assert prepared.findings == ()
    assert task().prepare(model(LABELS[::-1]), clips).targets[0].tolist() == [0]


def test_a_clip_without_a_class_or_with_two_is_left_out_and_named():
    prepared = task().prepare(model(), clips_of(["roll"], [], ["drag", "flam"], ["drag"]))
    assert [kept.id for kept in prepared.clips] == ["c0", "c3"]
    none, two = prepared.findings
    assert prepared.dropped == prepared.findings
    assert (none.check, none.severity, none.clip_ids) == ("label.count", "error", ("c1",))
    assert "'c1' has no class" in none.message
    assert "multi_label" not in none.message
    assert two.clip_ids == ("c2",)
    assert "drag, flam" in two.message
    assert "data.multi_label=true" in two.message


def test_several_classes_are_fine_where_they_are_allowed():
    prepared = task(multi_label=True).prepare(model(), clips_of(["roll", "drag"], ["flam"]))
    assert [ids.tolist() for ids in prepared.targets] == [[0, 2], [1]]
    assert prepared.findings == ()


def test_where_several_are_allowed_none_is_a_truth_to_learn_from():
    """`data.multi_label` says: any number of classes, none included; `has_reference` scores such clips."""
    clips = clips_of(["roll", "drag"], [])
    made = task(multi_label=True)
    assert [made.has_reference(one) for one in clips] == [True, True]
    prepared = made.prepare(model(), clips)
    assert prepared.clips == tuple(clips)
    assert [ids.tolist() for ids in prepared.targets] == [[0, 2], []]
    assert prepared.dropped == ()


def test_one_class_a_clip_needs_a_class_to_be_scored():
    made = task()
    assert [made.has_reference(one) for one in clips_of(["roll"], [])] == [True, False]


def test_a_class_the_model_does_not_know_is_refused_by_name():
    clips = clips_of(["roll"], ["ruff"], ["paradiddle"], ["ruff"])
    for call in (task().prepare, task().check_references):
        with pytest.raises(ManifestError) as caught:
            call(model(), clips)
        message = str(caught.value)
        assert "2 classes" in message
        assert "paradiddle, ruff" in message
        assert "drag, flam, roll" in message
        assert "model.outputs=data" in message
        with pytest.raises(ManifestError, match=r"data\.limit") as caught:
            call(model(new=True), clips)
        assert "model.outputs" not in str(caught.value)  # the layer is new already


def test_a_clip_that_is_scored_with_two_classes_is_refused_by_name():
    clips = clips_of(["roll"], [], ["drag", "flam"], ["roll", "drag"])
    with pytest.raises(ManifestError, match="'c2' has the classes drag, flam and 1 more clips have several") as caught:
        task().check_references(model(), clips)
    assert "data.multi_label=true" in str(caught.value)
    task().check_references(model(), clips[:2])
    task(multi_label=True).check_references(model(), clips)


def test_one_class_is_nothing_to_tell_apart():
    clips = clips_of(["roll"], ["roll"])
    with pytest.raises(ManifestError, match="one class, 'roll'; two or more are needed"):
        task().prepare(model(["roll"]), clips)
    assert len(task().prepare(model(), clips).clips) == 2  # a checkpoint that tells three apart
    assert len(task(multi_label=True).prepare(model(["roll"]), clips).clips) == 2  # yes or no


def test_clips_without_any_class_between_them_teach_nothing():
    with pytest.raises(ManifestError, match=r"none of the 2 training clips has a class.*'label' of data\.train"):
        task(multi_label=True).prepare(model(), clips_of([], []))


def test_scores_without_any_class_carry_a_warning():
    made = task(multi_label=True)
    found = [said("c0", 0.9, 0.1, 0.1), said("c1", 0.2, 0.1, 0.1)]
    _, [warning] = made.details(found, clips_of([], []))
    assert (warning.check, warning.severity) == ("label.none", "warning")
    assert made.details(found, clips_of([], ["drag"]))[1] == []


def test_the_outputs_are_all_classes_in_order_once():
    assert task().outputs(clips_of(["roll"], [], ["drag", "flam"], ["roll"])) == LABELS
    assert task().outputs([]) == ()


# --- scores --------------------------------------------------------------------------------------


def said(name: str, *scores: float) -> Prediction:
    return Prediction(clip_id=name, scores=dict(zip(LABELS, scores, strict=True)) if scores else {})


def test_scores_by_hand():
    clips = clips_of(["drag"], ["drag"], ["roll"], ["roll"])
    predictions = [
        said("c0", 0.8, 0.1, 0.1),
        said("c1", 0.2, 0.7, 0.1),
        said("c2", 0.1, 0.0, 0.9),
        said("c3", 0.3, 0.3, 0.4),
    ]
    scores = task().score(predictions, clips, resamples=100)
    assert set(scores) == {"accuracy", "f1_macro", "map"}
    assert scores["accuracy"].value == pytest.approx(3 / 4)
    assert scores["f1_macro"].value == pytest.approx((2 / 3 + 1) / 2)  # no `flam` here: absent, and not zero
    assert scores["map"].value == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert {score.count for score in scores.values()} == {4}
    assert all(score.low <= score.value <= score.high for score in scores.values())


def test_a_clip_that_could_not_be_read_is_wrong():
    clips = clips_of(["drag"], ["roll"])
    right = [said("c0", 0.8, 0.1, 0.1), said("c1", 0.1, 0.1, 0.8)]
    assert task().score(right, clips, resamples=100)["accuracy"].value == 1.0
    assert task().score([right[0], said("c1")], clips, resamples=100)["accuracy"].value == 0.5
    unread = task().score([said("c0"), said("c1")], clips, resamples=100)
    assert unread["accuracy"].value == unread["f1_macro"].value == 0.0


def test_several_classes_are_right_where_the_whole_set_is():
    clips = clips_of(["drag", "flam"], ["roll"], [], ["drag"])
    predictions = [
        said("c0", 0.9, 0.6, 0.1),
        said("c1", 0.1, 0.5, 0.9),
        said("c2", 0.1, 0.2, 0.3),
        said("c3", 0.49, 0.1, 0.1),
    ]
    made = task(multi_label=True)
    scores = made.score(predictions, clips, resamples=100)
    assert scores["map"].role == "primary"
    assert scores["accuracy"].value == 0.5
    assert [made.decide(prediction) for prediction in predictions] == [["drag", "flam"], ["flam", "roll"], [], []]


def test_an_unread_clip_is_wrong_where_none_would_be_right():
    """A clip that could not be read has not been found to have no class."""
    made = task(multi_label=True)
    clips = clips_of(["drag"], [])
    scores = made.score([said("c0", 0.9, 0.1, 0.1), said("c1")], clips, resamples=100)
    assert scores["accuracy"].value == 0.5


def test_the_confusion_matrix_has_a_row_for_each_truth():
    clips = clips_of(["drag"], ["drag"], ["roll"], ["flam"])
    predictions = [said("c0", 0.8, 0.1, 0.1), said("c1", 0.2, 0.7, 0.1), said("c2", 0.1, 0.0, 0.9), said("c3")]
    details, findings = task().details(predictions, clips)
    assert findings == []
    assert details["confusion"] == {"labels": list(LABELS), "counts": [[1, 1, 0], [0, 0, 0], [0, 0, 1]]}
    rows = {row["label"]: row for row in details["classes"]}
    assert rows["drag"]["support"] == 2
    assert rows["drag"]["recall"] == 0.5
    assert (rows["flam"]["support"], rows["flam"]["predicted"], rows["flam"]["recall"]) == (1, 1, 0.0)
    json.dumps(details, allow_nan=False)


def test_there_is_no_confusion_matrix_of_several_classes_or_of_nothing():
    many, _ = task(multi_label=True).details([said("c0", 0.9, 0.6, 0.1)], clips_of(["drag", "flam"]))
    assert set(many) == {"classes"}
    unread, _ = task().details([said("c0")], clips_of(["drag"]))
    assert set(unread) == {"classes"}


def test_what_is_kept_of_a_clip():
    clips = clips_of(["drag"], ["roll"])
    made = task()
    assert made.row(said("c0", 0.2, 0.7, 0.1), clips[0]) == {
        "labels": ["drag"],
        "decided": ["flam"],
        "scores": {"drag": 0.2, "flam": 0.7, "roll": 0.1},
    }
    assert made.row(said("c1"), clips[1]) == {"labels": ["roll"], "decided": [], "scores": {}}


def test_predictions_are_probabilities_in_the_order_of_the_batch():
    batch = batch_of([0], [2], [1], [1])
    one = task().predict(model(), batch)
    assert [prediction.clip_id for prediction in one] == ["c0", "c1", "c2", "c3"]
    for row, prediction in enumerate(one):
        assert sum(prediction.scores.values()) == pytest.approx(1.0)
        expected = [math.exp(score) for score in log_softmax(LOGITS[row])]
        assert list(prediction.scores.values()) == pytest.approx(expected, rel=1e-5)
    many = task(multi_label=True).predict(model(), batch)
    assert list(many[0].scores.values()) == pytest.approx([1 / (1 + math.exp(-x)) for x in (2.0, -1.0, 0.5)], rel=1e-5)
