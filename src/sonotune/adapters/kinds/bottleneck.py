"""LoRA with something between A and B that knows where in the audio each row lies.

What a kind puts there hangs on the LoRA layer of a module (`lora_...`, so that it belongs to the weight that the layer
adapts) and is applied by a hook on A. So it is the same code over weights of 4, 8 and 16 bits, and in PEFT's forward
pass as in ours.

A folder of such an adapter holds the low-rank part as a plain PEFT adapter in `lora/`, and what stands between A and B
in `adapter_model.safetensors`. PEFT and what builds on it find no `adapter_config.json` in the folder and refuse it:
read without what stands between, the low-rank part is another function.

Shape letters: B clips, P positions, N packed positions, R ranks.
"""

from __future__ import annotations

import types
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from torch import Tensor, nn

from sonotune.adapters.kinds.base import AdapterSettings, read_tensors
from sonotune.adapters.kinds.lora import Lora, lora_layers
from sonotune.adapters.kinds.lora import save as save_lora
from sonotune.adapters.metadata import ADAPTER_WEIGHTS, read_metadata, write_metadata
from sonotune.adapters.ranks.plan import RankPlan
from sonotune.errors import AdapterError, ModelError
from sonotune.features.frame_properties import WHOLE_CLIP
from sonotune.features.normalization import valid_frames
from sonotune.models.audio_positions import (
    AudioPositions,
    PositionedModules,
    decoded_rows,
    find_positioned,
    observe,
)
from sonotune.models.base import LoadedModel

LORA_FOLDER: Final = "lora"
"""In the folder of an adapter: its low-rank part, as PEFT writes it."""


class Rows:
    """Brings values of a batch's positions into the rows that a module computes.

    Args:
        found: Modules of the model that take positions.
    """

    def __init__(self, found: PositionedModules) -> None:
        self._encoder, self._crossing = found.encoder, frozenset(found.crossing)
        self.positions: AudioPositions | None = None
        self._own: Tensor | None = None
        self._packed: Tensor | None = None

    def begin(self, positions: AudioPositions) -> None:
        """Go over to a batch."""
        self.positions, self._own, self._packed = positions, None, None

    def own(self, device: torch.device) -> Tensor:
        """Which positions lie in each clip itself (B, P) bool; class tokens do not. Found once a batch."""
        if self._own is None or self._own.device != device:
            self._own = self._own_positions(device)
        return self._own

    def _own_positions(self, device: torch.device) -> Tensor:
        positions = self._heard()
        classes = int((positions.starts == WHOLE_CLIP).sum())
        times = (len(positions.starts) - classes) // positions.bands
        own_BP = valid_frames(positions.own.to(device), times).repeat(1, positions.bands)
        return nn.functional.pad(own_BP, (classes, 0), value=False)

    def packed(self, device: torch.device) -> Tensor:
        """Places of the own positions of all clips, one clip after the other, in rows (B P, ...); found once."""
        if self._packed is None or self._packed.device != device:
            positions = self._heard()  # lengths are never on the meta device, where `sonotune plan` computes
            own_BP = valid_frames(positions.own.cpu(), len(positions.starts))
            self._packed = own_BP.flatten().nonzero().squeeze(1).to(device)
        return self._packed

    @property
    def are_packed(self) -> bool:
        """Whether modules take `packed` rows."""
        return self._heard().packed

    def fit(self, name: str, values: Tensor, hidden: Tensor) -> Tensor:
        """Values of positions for the rows of a module.

        Args:
            name: Full name of the module.
            values: (B, P, ...), or (B, 1, ...) where all positions of a clip have the same.
            hidden: Rows of the module: (B', P, R) or, packed, (N, R) or (1, N, R).

        Returns:
            (B', P or 1, ...), or (N, ...) or (1, N, ...).

        Raises:
            AdapterError: They are not the rows of the batch that the encoder announced.
        """
        if name in self._crossing:
            values = self._of_decoder(name, values, len(hidden))
        elif self._heard().packed:
            if values.shape[1] == 1:
                values = values.expand(-1, len(self._heard().starts), *values.shape[2:])
            values = values.flatten(0, 1)[self.packed(values.device)]
            values = values.unsqueeze(0) if hidden.ndim == 3 else values
        rows, given = hidden.shape[:-1], values.shape[: hidden.ndim - 1]
        if len(rows) != len(given) or any(b not in (a, 1) for a, b in zip(rows, given, strict=True)):
            raise AdapterError(
                f"{name} computes rows of {tuple(rows)}, and the encoder announced {tuple(given)}: its adapter depends "
                "on where in the audio a row lies, and does not know it for these. Use the model through sonotune."
            )
        return values

    def _of_decoder(self, name: str, values: Tensor, clips: int) -> Tensor:
        rows_R = decoded_rows(self._encoder)
        values = values if rows_R is None else values[rows_R.to(values.device)]
        if len(values) == clips:
            return values
        if clips % len(values):
            raise AdapterError(f"{name} computes {clips} clips, and {len(values)} were encoded.")
        return values.repeat_interleave(clips // len(values), dim=0)  # beams

    def _heard(self) -> AudioPositions:
        if self.positions is None:
            raise AdapterError(
                "an adapter that depends on where in the audio a row lies was asked before its encoder had a batch. "
                "Use the model through sonotune: plain `transformers` does not say it."
            )
        return self.positions


class Between(ABC):
    """What computes between A and B of every module that has it.

    Args:
        layers: Full name -> PEFT LoRA layer.
        rows: Of the batch.
    """

    def __init__(self, layers: Mapping[str, Any], rows: Rows) -> None:
        self.layers, self.rows = dict(layers), rows

    def begin(self, positions: AudioPositions) -> None:
        """Get ready for a batch, of which the encoder's layers are computed next."""
        self.rows.begin(positions)

    @abstractmethod
    def apply(self, name: str, hidden: Tensor) -> Tensor:
        """What B gets (..., R) in the place of A's output (..., R)."""
        ...


class BetweenLora(Lora, ABC):
    """A kind that puts something between A and B."""

    own: str
    """How its parameters are called on a layer, up to what tells them apart."""
    crosses: bool
    """Whether the keys and values of cross-attention have it too."""

    @abstractmethod
    def shape(self, layer: Any, settings: AdapterSettings) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the parameters that a module gets: those it has beside LoRA's, below the layer."""
        ...

    @abstractmethod
    def shared(self, settings: AdapterSettings) -> dict[str, tuple[int, ...]]:
        """The same of parameters that all modules share, which hang on the first."""
        ...

    @abstractmethod
    def between(self, layers: Mapping[str, Any], rows: Rows, *, seed: int) -> Between:
        """What computes."""
        ...

    def start(self, layers: Mapping[str, Any], *, seed: int) -> None:
        """Give new parameters the values that they start from, where these are not 0."""

    def check(self, loaded: LoadedModel) -> None:
        """Raise AdapterError where the kind cannot be had on this model."""

    def attach(
        self, loaded: LoadedModel, targets: Sequence[str], settings: AdapterSettings, plan: RankPlan | None
    ) -> LoadedModel:
        """See `AdapterKind`.

        Raises:
            AdapterError: No target takes positions of the audio, or the architecture does not say where they lie.
        """
        self._found(loaded)
        self.check(loaded)
        adapted = super().attach(loaded, targets, settings, plan)
        layers = self._chosen(adapted)
        if not layers:
            raise AdapterError(
                f"adapter.kind={self.name} works on linears of the encoder, and adapter.targets names none of its "
                f"layers. Add encoder to them, or take adapter.kind=lora."
            )
        shapes = {name: self.shape(layer, settings) for name, layer in layers.items()}
        shapes[next(iter(layers))] |= self.shared(settings)
        self._equip(adapted, layers, shapes, seed=settings.gate_seed, trainable=True)
        self.start(layers, seed=settings.gate_seed)
        return adapted.with_(names=self)

    def _found(self, loaded: LoadedModel) -> PositionedModules:
        if loaded.merging.ratio:
            raise AdapterError(
                f"adapter.kind={self.name} needs to know where in the audio each row of the encoder lies, and a merged "
                "row lies at several places. Set frame_merging.ratio=0, or take adapter.kind=lora."
            )
        try:
            return find_positioned(loaded)
        except ModelError as error:
            raise AdapterError(f"adapter.kind={self.name} cannot be used: {error}") from error

    def _chosen(self, adapted: LoadedModel) -> dict[str, Any]:
        """The layers that get something between A and B."""
        found = self._found(adapted)
        names = {*found.linears, *(found.crossing if self.crosses else ())}
        return {name: layer for name, layer in lora_layers(adapted).items() if name in names}

    def _equip(
        self,
        adapted: LoadedModel,
        layers: Mapping[str, Any],
        shapes: Mapping[str, Mapping[str, tuple[int, ...]]],
        *,
        seed: int,
        trainable: bool,
    ) -> None:
        """Hang parameters, which are 0, on the layers, and what computes with them on A and on the encoder."""
        found = self._found(adapted)
        between = self.between(layers, Rows(found), seed=seed)
        for name, layer in layers.items():
            like = layer.lora_A["default"].weight
            for own, size in shapes[name].items():
                holder, _, last = own.rpartition(".")
                if not hasattr(layer, holder):
                    layer.add_module(holder, nn.Module())
                value = nn.Parameter(torch.zeros(size, device=like.device), requires_grad=trainable)
                getattr(layer, holder).register_parameter(last, value)
            layer.lora_A["default"].register_forward_hook(lambda _, __, hidden, name=name: between.apply(name, hidden))
            layer.merge = types.MethodType(_refuse_merge, layer)
        observe(found.encoder, between.begin)
        adapted.adapter.between = between  # type: ignore[union-attr]

    def save(
        self, loaded: LoadedModel, folder: Path, *, extra: dict[str, Any], weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write the low-rank part into `lora/`, and what stands between beside it."""
        from safetensors.torch import save_file  # noqa: PLC0415

        save_lora(loaded, folder / LORA_FOLDER, extra=extra, without=f".{self.own}")
        own = {name: value.detach().cpu().contiguous() for name, value in self.own_parameters(loaded).items()}
        save_file(own, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        write_metadata(loaded, folder, extra={**extra, "gate_seed": self.seed_of(loaded)})

    def own_parameters(self, loaded: LoadedModel) -> dict[str, nn.Parameter]:
        """What stands between A and B, by full name."""
        return {name: value for name, value in loaded.module.named_parameters() if f".{self.own}" in name}

    def seed_of(self, loaded: LoadedModel) -> int:
        """The seed that what stands between was made with."""
        return int(getattr(between_of(loaded), "seed", 0))

    def load(self, loaded: LoadedModel, folder: Path, *, trainable: bool = False) -> LoadedModel:
        """See `AdapterKind`; raises AdapterError where a part is missing or does not fit."""
        tensors = self._tensors(folder)
        adapted = super().load(loaded, folder / LORA_FOLDER, trainable=trainable)
        adapted = self._restored(adapted, folder, tensors, trainable=trainable)
        parameters = dict(adapted.module.named_parameters())
        with torch.no_grad():
            for name, value in tensors.items():
                parameters[name].copy_(value)
        return adapted

    def outline(self, loaded: LoadedModel, folder: Path) -> LoadedModel:
        """See `AdapterKind`."""
        tensors = self._tensors(folder)
        return self._restored(super().outline(loaded, folder / LORA_FOLDER), folder, tensors, trainable=True)

    def _tensors(self, folder: Path) -> dict[str, Tensor]:
        if not (folder / LORA_FOLDER).is_dir():
            raise AdapterError(f"{folder} lacks {LORA_FOLDER}/, the low-rank part of the adapter. Copy it again.")
        return read_tensors(folder)

    def _restored(
        self, adapted: LoadedModel, folder: Path, tensors: Mapping[str, Tensor], *, trainable: bool
    ) -> LoadedModel:
        layers = self._chosen(adapted)
        shapes: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in layers}
        for name, value in tensors.items():
            module, _, rest = name.partition(f".{self.own}")
            if module not in layers:
                raise AdapterError(
                    f"{folder / ADAPTER_WEIGHTS} has {name}, and {module} of {adapted.checkpoint} has no adapter that "
                    "it belongs to. Give the base model that the adapter was trained on."
                )
            shapes[module][self.own + rest] = tuple(value.shape)
        self._check_shapes(layers, shapes, folder)
        seed = int(read_metadata(folder).get("gate_seed", 0))
        self._equip(adapted, layers, shapes, seed=seed, trainable=trainable)
        return adapted.with_(names=self)

    def _check_shapes(
        self, layers: Mapping[str, Any], shapes: Mapping[str, Mapping[str, tuple[int, ...]]], folder: Path
    ) -> None:
        """Raise AdapterError unless every module has its parameters, and these fit each other."""
        usual = AdapterSettings()
        shared = {name: len(size) for name, size in self.shared(usual).items()}
        for index, (name, layer) in enumerate(layers.items()):
            wanted = {own: len(size) for own, size in self.shape(layer, usual).items()} | (shared if not index else {})
            if {own: len(size) for own, size in shapes[name].items()} != wanted:
                raise AdapterError(
                    f"{folder / ADAPTER_WEIGHTS} does not have what {name} needs ({', '.join(wanted)}). "
                    "Keep both parts of one adapter together, or copy it again."
                )


def between_of(loaded: LoadedModel) -> Between:
    """What stands between A and B of a model whose adapter is such a one."""
    found: Between = loaded.adapter.between  # type: ignore[union-attr]
    return found


def _refuse_merge(layer: Any, *_: Any, **__: Any) -> NoReturn:
    """PEFT's own merge would leave out what stands between A and B."""
    raise AdapterError(
        "PEFT would merge this adapter without what stands between its A and B, which is another function. "
        "Use `sonotune export`."
    )
