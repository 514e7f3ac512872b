"""Losses of labels in parts are those of all at once, and never hold all logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sonotune.models import losses
from sonotune.models.losses import LabelOutputs, label_rows

LABELS, WIDTH, OUTPUTS = 23, 6, 11


class Head(nn.Linear):
    """An output layer that remembers how many rows it was given at once."""

    def __init__(self, *, trains: bool) -> None:
        super().__init__(WIDTH, OUTPUTS)
        self.requires_grad_(trains)
        self.most = 0

    def forward(self, states: Tensor) -> Tensor:
        self.most = max(self.most, len(states))
        return super().forward(states)


@pytest.fixture
def outputs() -> Any:
    """Outputs of three clips; the last has no label."""

    def make(*, trains: bool) -> LabelOutputs:
        torch.manual_seed(0)
        places = torch.zeros(3, 20, dtype=torch.bool)
        places[0, :15], places[1, :8] = True, True
        return LabelOutputs(
            states=torch.randn(LABELS, WIDTH).requires_grad_(),
            head=Head(trains=trains),
            labels=torch.randint(OUTPUTS, (LABELS,)),
            places=places,
        )

    return make


def gradients(outputs: LabelOutputs, *, label_smoothing: float) -> list[Tensor]:
    """Sums of the clips, and gradients of their weighted sum."""
    sums_B = outputs.losses(label_smoothing=label_smoothing).sums
    trained = [outputs.states, *(one for one in outputs.head.parameters() if one.requires_grad)]
    return [sums_B, *torch.autograd.grad((sums_B * torch.tensor([0.3, 2.0, 7.0])).sum(), trained)]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("trains", [False, True], ids=["frozen head", "head trains"])
def test_losses_and_gradients_in_parts_are_those_of_all_labels(
    outputs: Any, monkeypatch: pytest.MonkeyPatch, trains: bool, label_smoothing: float
) -> None:
    whole = outputs(trains=trains)
    expected = gradients(whole, label_smoothing=label_smoothing)
    assert whole.head.most == LABELS
    monkeypatch.setattr(losses, "_LOGITS_AT_ONCE", 4 * OUTPUTS)
    parts = outputs(trains=trains)
    for found, wanted in zip(gradients(parts, label_smoothing=label_smoothing), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert parts.head.most == 4


def test_the_scale_of_mixed_precision_is_more_than_fp16_holds_and_reaches_the_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses, "_LOGITS_AT_ONCE", 4 * OUTPUTS)
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, OUTPUTS).requires_grad_(False).half()
    states = (100 * torch.randn(LABELS, WIDTH)).half().requires_grad_()  # sure of every label: gradients of nothing
    labels = head(states).argmax(dim=-1)
    outputs = LabelOutputs(states=states, head=head, labels=labels, places=torch.ones(1, LABELS, dtype=torch.bool))
    (outputs.losses().total * 2.0**16 * 8).backward()
    assert states.grad is not None
    assert bool(states.grad.isfinite().all())


def test_what_is_given_beside_the_logits_gets_no_gradient(outputs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.ones(LABELS, requires_grad=True)
    for at_once in (2**22, 4 * OUTPUTS):
        monkeypatch.setattr(losses, "_LOGITS_AT_ONCE", at_once)
        found = outputs(trains=True).by_part(lambda logits, _, w: w * logits.sum(dim=-1), weights)
        found.sum().backward()
        assert weights.grad is None


@pytest.mark.parametrize("learns", [False, True])
def test_frozen_states_under_a_frozen_head_have_a_loss(
    outputs: Any, monkeypatch: pytest.MonkeyPatch, learns: bool
) -> None:
    monkeypatch.setattr(losses, "_LOGITS_AT_ONCE", 1)
    whole = outputs(trains=False)
    whole.states.requires_grad_(learns)
    assert whole.losses().total.requires_grad is learns
    assert whole.label_tokens()[2] is not None


def test_labels_are_rated_alike_in_parts(outputs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        whole = outputs(trains=True).label_tokens()
        monkeypatch.setattr(losses, "_LOGITS_AT_ONCE", 1)
        one_by_one = outputs(trains=True)
        for found, wanted in zip(one_by_one.label_tokens(), whole, strict=True):
            assert (found.count, found.right) == (wanted.count, wanted.right)
            assert found.nll == pytest.approx(wanted.nll, rel=1e-5)
    assert one_by_one.head.most == 1


def test_a_part_has_a_label_at_least_and_a_batch_may_have_none() -> None:
    assert [label_rows(0, 5), label_rows(3, 5), label_rows(3, 2**40)] == [0, 3, 1]
    nothing = LabelOutputs(
        states=torch.zeros(0, WIDTH),
        head=Head(trains=False),
        labels=torch.zeros(0, dtype=torch.int64),
        places=torch.zeros(2, 4, dtype=torch.bool),
    )
    assert nothing.losses().sums.tolist() == [0.0, 0.0]
