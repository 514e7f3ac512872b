"""Full fine-tuning: no adapters, every parameter trains that the architecture lets train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sonotune.adapters.kinds.base import AdapterSettings, carries_one
from sonotune.adapters.metadata import write_metadata
from sonotune.adapters.ranks.plan import RankPlan
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel, PlainNames
from sonotune.models.decoding_defaults import set_decoding_defaults


class NoAdapter(PlainNames):
    """See `AdapterKind`."""

    folder, ranked = "model", False

    def attach(
        self, loaded: LoadedModel, targets: Sequence[str], settings: AdapterSettings, plan: RankPlan | None
    ) -> LoadedModel:
        """Mark every parameter that the architecture lets train.

        Raises:
            AdapterError: The weights are quantised, or the model carries an adapter.
        """
        if loaded.adapter is not None:
            raise AdapterError(carries_one("full fine-tuning starts from plain weights"))
        if loaded.quantized:
            raise AdapterError(
                f"adapter.kind=none trains all weights, but {len(loaded.quantized)} are quantised. "
                "Set quantization.bits=16, or use adapter.kind=lora."
            )
        for name, parameter in loaded.module.named_parameters():
            parameter.requires_grad_(name not in loaded.constant)
            parameter.data = parameter.data.float()
        return loaded

    def save(
        self, loaded: LoadedModel, folder: Path, *, extra: dict[str, Any], weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write the whole model."""
        set_decoding_defaults(
            loaded.module,
            getattr(loaded.processor, "tokenizer", None),
            family=loaded.family.name,
            language=extra.get("language"),
        )
        loaded.module.save_pretrained(folder, safe_serialization=True, state_dict=weights)
        loaded.processor.save_pretrained(folder)
        write_metadata(loaded, folder, extra=extra)

    def load(self, loaded: LoadedModel, folder: Path, *, trainable: bool = False) -> LoadedModel:
        """A whole model is opened as one (`loading.open_model`); there is nothing to put on it."""
        return loaded

    def outline(self, loaded: LoadedModel, folder: Path) -> LoadedModel:
        """There is nothing to put on it."""
        return loaded

    def disabled(self, loaded: LoadedModel) -> AbstractContextManager[Any]:
        """There is nothing to turn off."""
        return nullcontext()

    def update_norms(self, loaded: LoadedModel) -> dict[str, float]:
        """No module has an adapter."""
        return {}

    def merge(self, loaded: LoadedModel) -> dict[str, Tensor] | None:
        """The model is plain as it is."""
        return {}

    def low_rank(self, loaded: LoadedModel) -> dict[str, tuple[Tensor, Tensor]] | None:
        """No module has an adapter."""
        return {}

    def activations(self, module: nn.Module) -> tuple[int, float]:
        """Nothing beside what the module keeps."""
        return 0, 0.0


NONE = NoAdapter()
