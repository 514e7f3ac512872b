"""What a speech-to-text model gives to losses, and losses as sums and counts of each clip.

A family computes `Outputs` in one forward pass; an objective (`training.objectives`) makes losses of them.

Shape letters: B clips, T frames, U target tokens, V vocabulary, N labels of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from sonotune.features.normalization import valid_frames
from sonotune.types import LabelTokens

_LOGITS_AT_ONCE: Final = 2**22
"""50 MB with all that the loss makes of them; less costs time in Whisper-base, and more is no faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The losses of a batch as sums and counts, clip by clip.

    Attributes:
        sums: Loss of each clip summed over its labels, differentiable (B,).
        counts: Labels of each clip (B,) int64; float64 where clips have weights.
    """

    sums: Tensor
    counts: Tensor

    @property
    def total(self) -> Tensor:
        """Loss summed over all labels, a scalar."""
        return self.sums.sum()

    @property
    def count(self) -> float:
        """Number of labels, whole unless clips have weights."""
        number: float = self.counts.sum().item()
        return number

    def weighted(self, weights: Sequence[float]) -> Losses:
        """The losses with a weight for each clip, so that `total / count` is their weighted mean over labels.

        A clip of half the weight counts as half of its labels, in the sum and in the count: it moves the mean less, and
        a step of clips that all have one weight is the step that it would be without. Weight 0 is absence.

        Args:
            weights: Of the clips, from 0 to 1. Where all are 1, these are the losses as they are.
        """
        if all(weight == 1 for weight in weights):
            return self
        weights_B = torch.tensor(weights, dtype=torch.float64, device=self.counts.device)
        sums_B = torch.where(weights_B > 0, self.sums * weights_B.to(self.sums), 0.0)
        return Losses(sums=sums_B, counts=self.counts * weights_B)

    @classmethod
    def of_labels(cls, losses_N: Tensor, wanted_BU: Tensor) -> Losses:
        """Gather the losses of single labels by clip.

        Args:
            losses_N: Loss of each label, in row-major order of the places.
            wanted_BU: Where a batch has labels (B, U) bool, N of them.
        """
        rows_N = wanted_BU.nonzero()[:, 0]
        sums = losses_N.new_zeros(len(wanted_BU)).index_add(0, rows_N, losses_N)
        return cls(sums=sums, counts=wanted_BU.sum(dim=1))


class Outputs(Protocol):
    """What a family computes of a batch for its losses."""

    def losses(self, *, label_smoothing: float = 0.0) -> Losses:
        """The loss that the architecture is trained with, clip by clip.

        Args:
            label_smoothing: Share of each target's probability that is spread over the vocabulary.
        """
        ...

    def ctc_losses(self) -> Tensor | None:
        """CTC loss of each clip (B,) on the encoder's states of the same pass; None where the family has none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelOutputs:
    """A model that predicts the next token, at the positions that have a label.

    Logits are the largest tensors of a step where the vocabulary is large: in single precision, with their logarithms
    and their gradient, 12 bytes each. Where there are many, they are made part by part, and never held for the backward
    pass: under a frozen output layer the gradient of the states is taken at once, for each label by itself; where the
    layer trains, a part is computed again.

    Source: the gradient in the forward pass is that of Liger Kernel (Hsu et al. 2024, arXiv 2410.10989).

    Attributes:
        states: What the output layer gets (N, D).
        head: The output layer, (N, D) -> (N, V), with its V as `out_features`.
        labels: Token that each of them should predict (N,) int64.
        places: Where a batch has labels (B, U) bool, N of them.
        ctc: Gives `Outputs.ctc_losses`.
    """

    states: Tensor
    head: Any
    labels: Tensor
    places: Tensor
    ctc: Callable[[], Tensor] | None = None

    @property
    def logits(self) -> Tensor:
        """All of them (N, V), made anew each time that they are asked for."""
        logits_NV: Tensor = self.head(self.states)
        return logits_NV

    def by_part(self, function: Callable[..., Tensor], *others: Tensor) -> Tensor:
        """What a function makes of the logits of each label, so many labels at a time (`label_rows`).

        Args:
            function: Of logits (n, V), labels (n,) and rows of `others` to one number for each label (n,), which no
                other label changes: it may not normalise over the batch. Without gradients, to a row for each (n, ...).
            others: Further tensors with a row for each label (N, ...); they get no gradient.

        Returns:
            (N,) or (N, ...), differentiable in the states and the weights of the output layer.
        """

        def of_states(states: Tensor, *given: Tensor) -> Tensor:
            return function(self.head(states), *given)

        given = (self.labels, *(one.detach() for one in others))
        rows = label_rows(len(self.labels), self.head.out_features)
        if rows == len(self.labels):
            return of_states(self.states, *given)
        parts = zip(*(torch.split(tensor, rows) for tensor in (self.states, *given)), strict=True)
        trains = any(parameter.requires_grad for parameter in self.head.parameters())
        if not torch.is_grad_enabled() or not (trains or self.states.requires_grad):
            return torch.cat([of_states(*part) for part in parts])
        if trains:
            return torch.cat([checkpoint(of_states, *part, use_reentrant=False) for part in parts])
        of_part: Any = _RowsAlone.apply
        return torch.cat([of_part(of_states, *part) for part in parts])

    def losses(self, *, label_smoothing: float = 0.0) -> Losses:
        """Cross-entropy of each clip, summed over its labels."""

        def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(logits.float(), labels, reduction="none", label_smoothing=label_smoothing)

        return Losses.of_labels(self.by_part(cross_entropy), self.places)

    def ctc_losses(self) -> Tensor | None:
        """See `Outputs.ctc_losses`."""
        return None if self.ctc is None else self.ctc()

    @torch.no_grad()
    def label_tokens(self) -> list[LabelTokens | None]:
        """How the model rates the labels of each clip; None where it gives no finite number."""

        def rated(logits: Tensor, labels: Tensor) -> Tensor:
            losses = F.cross_entropy(logits.float(), labels, reduction="none")
            return torch.stack([losses, (logits.argmax(dim=-1) == labels).float()], dim=1)

        losses_N, right_N = self.by_part(rated).unbind(dim=1)
        losses = Losses.of_labels(losses_N, self.places)
        rows = zip(
            losses.sums.tolist(),
            losses.counts.tolist(),
            Losses.of_labels(right_N, self.places).sums.tolist(),
            strict=True,
        )
        return [
            LabelTokens(nll=nll, count=int(count), right=int(hits)) if math.isfinite(nll) else None
            for nll, count, hits in rows
        ]


class _RowsAlone(torch.autograd.Function):
    """Numbers of rows that no other row changes: their gradient is taken in the forward pass, and nothing else kept."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], states_ND: Tensor, *given: Tensor) -> Tensor:
        with torch.enable_grad():
            own_ND = states_ND.detach().requires_grad_()
            found_N = function(own_ND, *given)
            (gradient_ND,) = torch.autograd.grad(found_N.sum(), own_ND)
        ctx.save_for_backward(gradient_ND)
        ctx.given = len(given)
        return found_N.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_ND,), (outer_N,) = ctx.saved_tensors, gradients
        # The outer gradient has the scale of mixed precision in it, which fp16 cannot hold by itself.
        scaled_ND = (gradient_ND.float() * outer_N.float().unsqueeze(1)).to(gradient_ND.dtype)
        return None, scaled_ND, *[None] * ctx.given


def label_rows(labels: int, outputs: int) -> int:
    """Labels whose logits are made together: all, or as many as give `_LOGITS_AT_ONCE`.

    Args:
        labels: Of a batch, N.
        outputs: Tokens that the model can write, V.
    """
    return min(labels, max(1, _LOGITS_AT_ONCE // outputs))


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameOutputs:
    """Log-probabilities of every frame, of a CTC model.

    Attributes:
        log_probs: (B, T, V).
        lengths: Valid frames of each clip (B,).
        targets: Symbols (B, U) int64, negative behind the last.
        target_lengths: (B,).
        blank: Id of the blank.
    """

    log_probs: Tensor
    lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    blank: int

    def losses(self, *, label_smoothing: float = 0.0) -> Losses:
        """Negative log-probability of each clip's symbols over all their alignments.

        A clip that augmentation has made too short for its transcript counts neither in the sum nor in the count.
        Smoothing adds the mean cross-entropy to the uniform distribution over the valid frames.

        Source: Graves et al. 2006; smoothing by Kim et al. 2018.
        """
        targets_BU = self.targets.clamp_min(0)
        sums_B = F.ctc_loss(
            self.log_probs.transpose(0, 1),
            targets_BU,
            self.lengths,
            self.target_lengths,
            blank=self.blank,
            reduction="none",
            zero_infinity=True,
        )
        sums_B = self.smoothed(sums_B, label_smoothing)
        repeats_B = ((targets_BU[:, 1:] == targets_BU[:, :-1]) & (self.targets[:, 1:] >= 0)).sum(dim=1)
        fits_B = self.target_lengths + repeats_B <= self.lengths
        return Losses(sums=sums_B * fits_B, counts=self.target_lengths.clamp_min(1) * fits_B)

    def smoothed(self, sums_B: Tensor, label_smoothing: float) -> Tensor:
        """Losses with a share of the cross-entropy to the uniform distribution over the valid frames (Kim et al. 2018).

        Args:
            sums_B: Loss of each clip.
            label_smoothing: The share.
        """
        if not label_smoothing:
            return sums_B
        valid_BT = valid_frames(self.lengths, self.log_probs.shape[1])
        uniform_B = -(self.log_probs.mean(dim=-1) * valid_BT).sum(dim=1)
        return (1 - label_smoothing) * sums_B + label_smoothing * uniform_B

    def ctc_losses(self) -> Tensor | None:
        """The loss is CTC already."""
        return None
