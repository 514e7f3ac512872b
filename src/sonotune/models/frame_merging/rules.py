"""Which neighbours are merged first: the rules by name, and the quantisation noise that two of them go by.

`similarity` merges neighbours whose keys point the same way. `noise_aware` divides their distance by how much of it
may be the rounding of a 4-bit key projection: with the error E of its weight, two inputs that differ by d have keys
whose difference is wrong by E d. The squared length of that is estimated by 16 random signs of the rows of E. Where it
is large beside the median of the clip, a difference counts less, by `noise_weight` at most. On synthetic weights this
noise hardly depends on the frame, so `noise_shuffled` is its placebo: the same noise, given to other pairs of the
clip. `random` and `uniform` (an even rate, which is average pooling of two) look at nothing, and `energy` merges what
is quietest.

What is drawn depends on the layer and the length of a clip alone: it is the same in training, in evaluation and in
every batch.

Source: Bolya et al. 2023 (arXiv 2210.09461) for keys; Johnson & Lindenstrauss 1984, Achlioptas 2003 for random signs.

Shape letters: B clips, P positions, S neighbouring pairs (P - 1), K width of the keys, D width, R signs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

SKETCH_ROWS: Final = 16
"""Random signs of a sketch."""
_SEED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a rule may look at.

    Attributes:
        keys: Key projections (B, P, K) of the layer that positions are merged after.
        inputs: What the key projection read (B, P, D).
        states: What the layer gave out, which is merged (B, P, D).
        lengths: Positions of each clip that may be merged.
        pairs: Pairs of each that will be.
        layer: Its number.
        sketch: Random signs of the error of the key projection's weight (R, D); None where it is not quantised.
        noise_weight: See `FrameMerging`.
    """

    keys: Tensor
    inputs: Tensor
    states: Tensor
    lengths: Sequence[int]
    pairs: Sequence[int]
    layer: int
    sketch: Tensor | None = None
    noise_weight: float = 0.0


Rule = Callable[[Evidence], Tensor]
"""Evidence -> scores of pairs (B, S) float32; higher is merged first."""


def similarity(evidence: Evidence) -> Tensor:
    """Cosine of neighbouring keys."""
    keys_BPK = evidence.keys.float()
    return F.cosine_similarity(keys_BPK[:, 1:], keys_BPK[:, :-1], dim=-1)


def noise_aware(evidence: Evidence) -> Tensor:
    """Distance of neighbouring keys, of which so much less counts as may be quantisation noise; negative."""
    return _by_distance(evidence, _noise(evidence))


def noise_shuffled(evidence: Evidence) -> Tensor:
    """`noise_aware` with the noise of other pairs of the same clip."""
    noise_BS = _noise(evidence)
    order_BS = _rows([_draw(max(0, length - 1), evidence.layer) for length in evidence.lengths], noise_BS).long()
    return _by_distance(evidence, noise_BS.gather(1, order_BS))


def random(evidence: Evidence) -> Tensor:
    """The same draw for all clips of one length."""
    return _rows([_draw(max(0, length - 1), evidence.layer) for length in evidence.lengths], evidence.keys[..., 0])


def uniform(evidence: Evidence) -> Tensor:
    """Pairs at an even rate over the clip."""
    return _rows(
        [_spread(length, pairs) for length, pairs in zip(evidence.lengths, evidence.pairs, strict=True)],
        evidence.keys[..., 0],
    )


def energy(evidence: Evidence) -> Tensor:
    """The quietest pairs first, by the squared length of their states."""
    energy_BP = evidence.states.float().square().sum(dim=-1)
    return -(energy_BP[:, 1:] + energy_BP[:, :-1])


RULES: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        "similarity": similarity,
        "noise_aware": noise_aware,
        "noise_shuffled": noise_shuffled,
        "random": random,
        "uniform": uniform,
        "energy": energy,
    }
)


def sketch_error(error_KD: Tensor, layer: int) -> Tensor:
    """Random signs (R, D) of the rows of a weight's error: of an input's noise they keep the length, about.

    Args:
        error_KD: De-quantised weight minus the weight.
        layer: Number of the layer, which decides the signs.
    """
    generator = torch.Generator().manual_seed(_SEED + layer)
    signs_RK = torch.randint(0, 2, (SKETCH_ROWS, error_KD.shape[0]), generator=generator).float() * 2 - 1
    return signs_RK.to(error_KD.device) @ error_KD.float() / SKETCH_ROWS**0.5


def _noise(evidence: Evidence) -> Tensor:
    """Estimate of the squared quantisation noise in the difference of neighbouring keys (B, S)."""
    if evidence.sketch is None:
        raise ValueError("a rule that goes by quantisation noise needs a sketch of the weight's error.")
    # The difference is taken first: under autocast, what is small between large projections would be rounded away.
    change_BSD = evidence.inputs[:, 1:].float() - evidence.inputs[:, :-1].float()
    return F.linear(change_BSD, evidence.sketch.float()).float().square().sum(dim=-1)


def _by_distance(evidence: Evidence, noise_BS: Tensor) -> Tensor:
    """-2 (1 - cosine) / (1 + weight · clip(noise / median - 1, -1, 1)); the weight 0 orders as `similarity` does."""
    own_BS = torch.arange(noise_BS.shape[1], device=noise_BS.device) < _counts(evidence, noise_BS)
    sorted_BS = noise_BS.masked_fill(~own_BS, torch.inf).sort(dim=1).values
    middle_B1 = sorted_BS.gather(1, ((_counts(evidence, noise_BS) - 1) // 2).clamp_min(0))
    excess_BS = torch.where(middle_B1 > 0, noise_BS / middle_B1.clamp_min(torch.finfo().tiny) - 1, 0.0).clamp(-1, 1)
    return -2 * (1 - similarity(evidence)) / (1 + evidence.noise_weight * excess_BS)


def _counts(evidence: Evidence, like: Tensor) -> Tensor:
    """Pairs that each clip has (B, 1)."""
    return torch.tensor([max(0, length - 1) for length in evidence.lengths], device=like.device).unsqueeze(1)


@functools.lru_cache(maxsize=4096)
def _draw(pairs: int, layer: int) -> Tensor:
    """A permutation of a clip's pairs (S,) float32."""
    generator = torch.Generator().manual_seed(_SEED * (layer + 1) + 1_000_003 * pairs)
    return torch.randperm(pairs, generator=generator).float()


@functools.lru_cache(maxsize=4096)
def _spread(length: int, pairs: int) -> Tensor:
    """1 for pairs at an even rate, of those that begin at even places, and 0 for all others (S,) float32."""
    there = length // 2
    scores_S = torch.zeros(max(0, length - 1))
    if pairs:
        places = torch.arange(there)
        taken = (places + 1) * pairs // there > places * pairs // there
        scores_S[2 * places[taken]] = 1.0
    return scores_S


def _rows(rows: Sequence[Tensor], like: Tensor) -> Tensor:
    """Rows of unequal length as one tensor (B, S) on the device of `like`, 0 behind each."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(like.device)
