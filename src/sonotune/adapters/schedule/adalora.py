"""AdaLoRA: ranks that are pruned while they train, by how sensitive the loss is to each direction.

An update is B diag(e) A with e at zero and A, B drawn, kept near orthogonal by a penalty. Every direction has a score
from its moving sensitivity |w·g| and that of its uncertainty; from a share of the steps on, the directions with the
lowest scores have their e set to zero, until what is left fits the budget. Source: Zhang et al. 2023, AdaLoRA
(arXiv 2303.10512), and PEFT's `tuners/adalora` for its defaults.

Two things differ from PEFT's. The budget is counted in parameters, so that it can be compared with other allocators.
And when training is over e is folded into A and the pruned directions are dropped, so that a plain LoRA is left.
While it trains it has half as many directions again as the reference rank.

Shape letters: R rank, I inputs, O outputs.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from sonotune.adapters.kinds.lora import lora_layers
from sonotune.adapters.schedule.callback import AdapterCallback, Event
from sonotune.adapters.schedule.resize import keep_directions
from sonotune.models.base import LoadedModel
from sonotune.runs import torch_seed

FACTOR: Final = 1.5
"""Directions at the start, in reference ranks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaLoraSettings:
    """Schedule and weights; the defaults are PEFT's, its steps as shares.

    Attributes:
        start: Share of the steps before pruning begins.
        end: Share of the steps after which ranks stay.
        every: Steps between two prunings.
        sensitivity_decay: Of the moving sensitivity.
        uncertainty_decay: Of its moving uncertainty.
        orthogonality: Weight of the penalty.
        deviation: Standard deviation that A and B are drawn with.
    """

    start: float = 0.1
    end: float = 0.7
    every: int = 5
    sensitivity_decay: float = 0.85
    uncertainty_decay: float = 0.85
    orthogonality: float = 0.5
    deviation: float = 0.02


class AdaLora(AdapterCallback):
    """Turns the LoRA layers of a model into AdaLoRA's, in place, and prunes them.

    Args:
        loaded: A model with fresh adapters, which have the ranks to begin with.
        names: Full names of the modules that share the budget; others, such as an adapted stem, are left alone.
        budget: Adapter parameters in the end.
        seed: Draws A and B.
        settings: Schedule and weights.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        names: Collection[str],
        *,
        budget: int,
        seed: int,
        settings: AdaLoraSettings | None = None,
    ) -> None:
        self._loaded, self._budget, self._settings = loaded, budget, settings or AdaLoraSettings()
        self._layers: dict[str, Any] = {name: layer for name, layer in lora_layers(loaded).items() if name in names}
        self._kept: dict[str, Tensor] = {}
        self._moving: dict[str, Tensor] = {}
        self._hooks = []
        for name, layer in self._layers.items():
            down, up = layer.lora_A["default"], layer.lora_B["default"]
            generator = torch.Generator().manual_seed(torch_seed(seed, "adalora", name))
            with torch.no_grad():
                for weight in (down.weight, up.weight):
                    drawn = torch.randn(weight.shape, generator=generator) * self._settings.deviation
                    weight.copy_(drawn)
            rank = len(down.weight)
            down.register_parameter("values", nn.Parameter(torch.zeros(rank, device=down.weight.device)))
            self._hooks.append(down.register_forward_hook(_scale))
            self._kept[name] = torch.ones(rank, dtype=torch.bool)

    def penalty(self, step: int, total_steps: int) -> Tensor | None:
        """Mean distance of AAᵀ and BᵀB from the identity (Frobenius norm), over all layers, times its weight."""
        distances = []
        for layer in self._layers.values():
            a_RI, b_OR = layer.lora_A["default"].weight.flatten(1), layer.lora_B["default"].weight.flatten(1)
            for gram_RR in (a_RI @ a_RI.mT, b_OR.mT @ b_OR):
                distances.append(torch.linalg.norm(gram_RR - torch.eye(len(gram_RR), device=gram_RR.device)))
        return self._settings.orthogonality * torch.stack(distances).mean()

    def on_gradients(self, step: int, total_steps: int) -> None:
        """Bring the moving sensitivities up to date."""
        if self.final(step, total_steps):
            return
        for name, layer in self._layers.items():
            for key, parameter in _parts(layer).items():
                if parameter.grad is None:
                    continue
                now = (parameter.detach() * parameter.grad).abs()
                mean = self._moving.setdefault(f"{name}/{key}/sensitivity", torch.zeros_like(now))
                spread = self._moving.setdefault(f"{name}/{key}/uncertainty", torch.zeros_like(now))
                mean.lerp_(now, 1 - self._settings.sensitivity_decay)
                spread.lerp_((now - mean).abs(), 1 - self._settings.uncertainty_decay)

    def after_step(self, step: int, total_steps: int, optimizer: torch.optim.Optimizer) -> Event | None:
        """Prune when it is time, and hold what is pruned at zero once the ranks stay."""
        settings = self._settings
        first, last = settings.start * total_steps, settings.end * total_steps
        due = first < step <= last and (step % settings.every == 0 or step + 1 > last)
        if due:
            self._choose(self._affordable(step, first, last))
        if due or step > last:
            self._mask()
        return ("ranks", {"ranks": self.ranks()}) if due else None

    def final(self, step: int, total_steps: int) -> bool:
        """Whether the last pruning is over."""
        return step >= self._settings.end * total_steps

    def ranks(self) -> dict[str, int]:
        """Directions that are left of each layer."""
        return {name: int(kept.sum()) for name, kept in self._kept.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Moving sensitivities, and what is kept."""
        return {**self._moving, **{f"{name}/kept": kept for name, kept in self._kept.items()}}

    def restore(self, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """See `AdapterCallback.restore`."""
        for key, value in tensors.items():
            name, _, what = key.rpartition("/")
            if what == "kept":
                self._kept[name] = value.bool()
            else:
                device = self._layers[name.rpartition("/")[0]].lora_A["default"].weight.device
                self._moving[key] = value.to(device)

    def finalise(self) -> Mapping[str, int] | None:
        """Fold e into A, drop what is pruned; a plain LoRA is left."""
        if sum(_cost(layer) * int(self._kept[name].sum()) for name, layer in self._layers.items()) > self._budget:
            self._choose(self._budget)  # training ended before the ranks had settled
        self._mask()
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers.values():
            down = layer.lora_A["default"]
            with torch.no_grad():
                down.weight.mul_(down.values.view(-1, *[1] * (down.weight.dim() - 1)))
            del down.values
        keep_directions(self._loaded, self._kept)
        return self.ranks()

    def _affordable(self, step: int, first: float, last: float) -> int:
        """Parameters that may be left at a step: a cubic fall to the budget."""
        whole = sum(_cost(layer) * len(self._kept[name]) for name, layer in self._layers.items())
        left = 1 - (step - first) / max(1.0, last - first)
        return self._budget + round((whole - self._budget) * left**3) if step + 1 <= last else self._budget

    def _choose(self, affordable: int) -> None:
        """Keep the best direction of every layer, and of the others the best that can be paid for."""
        scores = {name: self._scores(name, layer) for name, layer in self._layers.items()}
        self._kept = {name: torch.zeros(len(score), dtype=torch.bool) for name, score in scores.items()}
        rest: list[tuple[float, int, str, int]] = []
        for order, (name, score_R) in enumerate(scores.items()):
            best = int(score_R.argmax())
            self._kept[name][best] = True
            affordable -= _cost(self._layers[name])
            rest += [(-float(score), order, name, place) for place, score in enumerate(score_R) if place != best]
        heapq.heapify(rest)
        while rest:
            _, _, name, place = heapq.heappop(rest)
            if (cost := _cost(self._layers[name])) <= affordable:
                self._kept[name][place] = True
                affordable -= cost

    def _scores(self, name: str, layer: Any) -> Tensor:
        """Importance of each direction: that of its e, and the means over its row of A and its column of B (R,)."""
        e_R, a_RI, b_OR = (self._score(f"{name}/{key}", part) for key, part in _parts(layer).items())
        return (e_R + a_RI.flatten(1).mean(1) + b_OR.flatten(1).mean(0)).cpu()

    def _score(self, key: str, parameter: Tensor) -> Tensor:
        """Moving sensitivity times its uncertainty, element by element; zero where no gradient has come yet."""
        mean, spread = (self._moving.get(f"{key}/{what}") for what in ("sensitivity", "uncertainty"))
        return torch.zeros_like(parameter) if mean is None or spread is None else mean * spread

    def _mask(self) -> None:
        with torch.no_grad():
            for name, layer in self._layers.items():
                values = layer.lora_A["default"].values
                values.mul_(self._kept[name].to(values.device))


def _scale(down: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Multiply the output of A by e; a convolution has its directions in the second place."""
    values: Any = down.values
    if isinstance(down, nn.Conv1d | nn.Conv2d):
        values = values.view(1, -1, *[1] * (output.dim() - 2))
    scaled: Tensor = output * values
    return scaled


def _parts(layer: Any) -> dict[str, Tensor]:
    down = layer.lora_A["default"]
    return {"values": down.values, "A": down.weight, "B": layer.lora_B["default"].weight}


def _cost(layer: Any) -> int:
    """Adapter parameters of one direction, e left out, for it is folded away."""
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return int(down[0].numel() + up.numel() // up.shape[1])
