"""What should train beside the adapters, how fast, and which part of the model gets how much of the budget.

A shift of the acoustics wants other parts to move than new words do, and inputs alone cannot say which it is: the
gradient of the loss can. What the first step of the optimiser would gain is the same question for every part. AdamW
moves each entry by the learning rate against the sign of its gradient, so that the loss falls, to first order and by
unit of learning rate, by the sum of |gradient| over a part's entries. Noise has a sign as well; so the steps are those
of one half of the clips, and the gain is what they do to the loss of the other half, other speakers where there are
two:

    D = 1/2 sum (sign(g1) g2 + sign(g2) g1)

For adapters the entries are those of B, at B = 0 and with the A that they would start from.

- A part trains in full precision beside the adapters where each of its weights gains at least what each of those does
  in the group that gains most by parameter: the group that more budget would go to otherwise.
- Its learning rate is scaled by (gain of all adapters together / its own gain)^gamma, and by 1 at most: a stem has so
  many weights that at the rate of the adapters it would overshoot.
- A group's share of the adapters' budget is scaled by (gain per parameter)^gamma, within a quarter and four times.

With gamma 1 every part would move the loss alike in the first step. But adapters gain more in later steps, when A moves
as well, and gamma tempers what one step can say of a hundred.

Shape letters: E outputs of a linear, P rank, D inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import TypeAdapter
from torch import Tensor
from typing_extensions import TypedDict

from sonotune.adapters.calibration.activations import Autocast, Objective
from sonotune.adapters.calibration.direction_gradients import mean_gradients
from sonotune.adapters.kinds.lora import full_modules
from sonotune.adapters.ranks.plan import Target, matrix_shape
from sonotune.errors import AdapterError
from sonotune.json_files import Count, Number, check_json
from sonotune.models.base import LoadedModel
from sonotune.runs import torch_seed
from sonotune.types import Clip

LEAST_RATE = 1e-6
"""A part that trains has at least this share of the learning rate, however much more than the adapters it gains."""
MAX_COMPONENT_RATIO = 4.0
"""A group gets from the inverse of this times what equal ranks would give it up to this times that."""


MEASURE_AGAIN = "Remove it, and it is measured anew."


class _SplitEntries(TypedDict):
    """What `split.json` holds."""

    schema: Literal[1]
    stem: bool
    unfreeze: list[str]
    rates: dict[str, Number]
    weights: dict[str, Number]
    gains: dict[str, Number]
    parameters: dict[str, Count]
    groups: list[str]


_SPLIT = TypeAdapter(_SplitEntries)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstStep:
    """What the first step of the optimiser gains in each part.

    Attributes:
        gains: Part -> fall of the loss of clips that the step did not see, by unit of learning rate; may be negative.
        parameters: Part -> trainable parameters; of adapters, of A and B.
        groups: Those parts that are groups of adapters; the others are component selectors.
    """

    gains: Mapping[str, float]
    parameters: Mapping[str, int]
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """What trains, and how fast.

    Attributes:
        stem: Whether the stem trains in full precision.
        unfreeze: Further selectors of what does.
        rates: Selector -> factor on the learning rate.
        weights: Group -> factor on its share of the adapters' budget.
        first_step: What it was decided by.
    """

    stem: bool
    unfreeze: tuple[str, ...]
    rates: Mapping[str, float]
    weights: Mapping[str, float]
    first_step: FirstStep

    def to_json(self) -> dict[str, Any]:
        """What `split.json` holds."""
        step = self.first_step
        return {
            "schema": 1,
            "stem": self.stem,
            "unfreeze": list(self.unfreeze),
            "rates": dict(self.rates),
            "weights": dict(self.weights),
            "gains": dict(step.gains),
            "parameters": dict(step.parameters),
            "groups": list(step.groups),
        }

    @classmethod
    def from_json(cls, entries: object, *, where: str = "the split") -> Split:
        """Read one back.

        Raises:
            AdapterError: It is no such file.
        """
        found = check_json(entries, _SPLIT, where=where, error=AdapterError, do=MEASURE_AGAIN)
        return cls(
            stem=found["stem"],
            unfreeze=tuple(found["unfreeze"]),
            rates=found["rates"],
            weights=found["weights"],
            first_step=FirstStep(gains=found["gains"], parameters=found["parameters"], groups=tuple(found["groups"])),
        )

    def words(self) -> list[str]:
        """The same as settings of a command line."""
        rates, shares = (
            ", ".join(f"{name}: {value:g}" for name, value in table.items()) for table in (self.rates, self.weights)
        )
        return [
            f"adapter.stem={'train' if self.stem else 'frozen'}",
            *([f"adapter.unfreeze=[{','.join(self.unfreeze)}]"] if self.unfreeze else []),
            *([f"training.learning_rates={{{rates}}}"] if rates else []),
            f"allocation.group_weights={{{shares}}}",
        ]

    def sentence(self) -> str:
        """In words, for a log."""
        full = [*(["stem"] if self.stem else []), *self.unfreeze]
        parts = ", ".join(f"{name} at {self.rates.get(name, 1):g} of the learning rate" for name in full) or "nothing"
        shares = ", ".join(f"{group} x {weight:.2g}" for group, weight in self.weights.items())
        return f"in full precision: {parts}; budget of the adapters: {shares}"


def decide(found: FirstStep, *, gamma: float = 0.5) -> Split:
    """The rule.

    Args:
        found: What the first step gains.
        gamma: Exponent on the gains: 0 leaves the budget as equal ranks share it, and all parts at one learning rate.

    Raises:
        AdapterError: No group of adapters gains anything: the steps of one half of the clips do not help the other.
    """
    gained = math.fsum(max(0.0, found.gains[group]) for group in found.groups)
    size = sum(found.parameters[group] for group in found.groups)
    if gained <= 0:
        raise AdapterError(
            "what one half of the calibration clips teaches does not help the other half, in any group of adapters: no "
            "split can be measured. Raise allocation.clips, or set adapter.split=given."
        )
    # As shares of what the adapters gain, which no unit makes too small to hold.
    shares = {part: max(0.0, gain) / gained for part, gain in found.gains.items()}
    sizes = {part: count / size for part, count in found.parameters.items()}
    best = max(shares[group] / sizes[group] for group in found.groups)
    full = [part for part in found.gains if part not in found.groups and shares[part] >= best * sizes[part] > 0]
    rates = {part: max(LEAST_RATE, float(f"{min(1.0, 1 / shares[part]) ** gamma:.2g}")) for part in full}
    worth = {group: math.pow(shares[group] / sizes[group], gamma) for group in found.groups}
    return Split(
        stem="stem" in full,
        unfreeze=tuple(part for part in full if part != "stem"),
        rates={part: rate for part, rate in rates.items() if rate < 1},
        weights={
            group: float(f"{min(MAX_COMPONENT_RATIO, max(1 / MAX_COMPONENT_RATIO, value)):.3g}")
            for group, value in worth.items()
        },
        first_step=found,
    )


def measure(
    loaded: LoadedModel,
    objective: Objective,
    clips: Sequence[Clip],
    sites: Sequence[Target],
    *,
    rank: int,
    scale: float = 1.0,
    seed: int = 0,
    autocast: Autocast = nullcontext,
) -> FirstStep:
    """What the first step would gain in every group of adapters, in the stem, and in the norms of each component.

    Args:
        loaded: The model without adapters; nothing of it changes.
        objective: Gives targets and the loss.
        clips: Training clips, each a forward and a backward pass; 64 are enough.
        sites: Where adapters go.
        rank: Their reference rank.
        scale: Of their updates at that rank.
        seed: Of the A matrices.
        autocast: Makes the precision context of each forward pass.

    Raises:
        AdapterError: There are fewer than two clips, or a half of them cannot be used.
    """
    parts = full_parts(loaded, sites)
    rows = {site.name: initial_rows(loaded, site.name, rank, seed) for site in sites}
    weights = [name for names in parts.values() for name in names]
    first, second = (
        mean_gradients(loaded, objective, half, rows, weights, autocast=autocast) for half in halves(clips)
    )
    group_of = {site.name: site.group for site in sites}
    part_of = group_of | {name: part for part, names in parts.items() for name in names}
    gains: dict[str, list[float]] = {part: [] for part in part_of.values()}
    for name, gradient in first.items():
        gains[part_of[name]].append(_crossed(gradient, second[name]) * (scale if name in group_of else 1.0))
    parameters = dict.fromkeys(gains, 0)
    for site in sites:
        parameters[site.group] += site.cost * rank
    for part, names in parts.items():
        parameters[part] = sum(first[name].numel() for name in names)
    return FirstStep(
        gains={part: math.fsum(values) for part, values in gains.items()},
        parameters=parameters,
        groups=tuple(dict.fromkeys(group_of.values())),
    )


def _crossed(first: Tensor, second: Tensor) -> float:
    return float((first.sign() * second + second.sign() * first).sum(dtype=torch.float64)) / 2


def initial_rows(loaded: LoadedModel, name: str, rank: int, seed: int) -> Tensor:
    """An A matrix (P, D) as adapters start from: uniform within 1 / sqrt(D), the same for the same seed and name.

    Args:
        loaded: The model without adapters.
        name: Of the target module, with D inputs.
        rank: P.
        seed: Of the draw.
    """
    _, inputs = matrix_shape(loaded, name)
    generator = torch.Generator().manual_seed(torch_seed(seed, "first step", name))
    return (2 * torch.rand(rank, inputs, generator=generator) - 1) / math.sqrt(inputs)


def full_parts(loaded: LoadedModel, sites: Sequence[Target]) -> dict[str, tuple[str, ...]]:
    """Selector -> parameters, of what could train in full precision beside these adapters: stem and norms."""
    adapted = {site.name for site in sites}
    found: dict[str, tuple[str, ...]] = {}
    norms = [f"{component.name}.norms" for component in loaded.components if component.name != "stem"]
    for selector in ("stem", *norms):
        modules = full_modules(loaded, selector)
        if modules and not adapted.intersection(modules):
            found[selector] = tuple(
                name
                for name, _ in loaded.module.named_parameters()
                if any(name.startswith(module + ".") for module in modules)
            )
    return {selector: names for selector, names in found.items() if names}


def halves(clips: Sequence[Clip]) -> tuple[list[Clip], list[Clip]]:
    """Two halves with about as many clips, of different speakers where at least two are known, in order of id.

    Raises:
        AdapterError: There are fewer than two clips.
    """
    if len(clips) < 2:
        raise AdapterError(f"a split needs 2 calibration clips or more, and there are {len(clips)}.")
    by_speaker: dict[str, list[Clip]] = {}
    for clip in sorted(clips, key=lambda clip: clip.id):
        by_speaker.setdefault(clip.speaker or "", []).append(clip)
    blocks = list(by_speaker.values()) if len(by_speaker) > 1 and "" not in by_speaker else [[clip] for clip in clips]
    sides: tuple[list[Clip], list[Clip]] = ([], [])
    for block in sorted(blocks, key=lambda block: (-len(block), block[0].id)):
        min(sides, key=len).extend(block)
    first, second = (sorted(side, key=lambda clip: clip.id) for side in sides)
    return first, second
