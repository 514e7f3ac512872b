"""LoRA with a depthwise convolution over time between A and B, in the layers of the encoder.

For rows x of a clip in order of time, B gets `A x + conv(A x)`: each rank is filtered by itself, over some neighbouring
positions. The filters start at 0, where the adapter is LoRA. Rows outside the clip itself count as 0 and get nothing,
so that neither padding nor how much of the window is computed changes what a clip gets.

Source: GC-LoRA (arXiv 2606.10464), whose convolution is gated by itself as well; here it is not.

Shape letters: B clips, P positions, N packed positions, R ranks, K positions of a filter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch.nn.functional as F
from torch import Tensor, nn

from sonotune.adapters.kinds.base import AdapterSettings
from sonotune.adapters.kinds.bottleneck import Between, BetweenLora, Rows
from sonotune.errors import AdapterError
from sonotune.models.audio_positions import AudioPositions
from sonotune.models.base import LoadedModel

_FILTERS: Final = "lora_conv_filters"


class _Convolution(Between):
    """See the module."""

    def begin(self, positions: AudioPositions) -> None:
        """See `Between`.

        Raises:
            AdapterError: Rows are not in order of time.
        """
        if positions.bands > 1:
            raise AdapterError("rows of several bands of frequency are no series in time; see `check`.")
        super().begin(positions)

    def apply(self, name: str, hidden: Tensor) -> Tensor:
        """See `Between`."""
        weight_RK = getattr(self.layers[name], _FILTERS).weight
        own_BP = self.rows.own(hidden.device)
        self.rows.fit(name, own_BP, hidden)  # or it raises
        if self.rows.are_packed:
            places_N = self.rows.packed(hidden.device)
            flat = hidden.new_zeros(own_BP.numel(), hidden.shape[-1])
            rows_BPR = flat.index_copy(0, places_N, hidden.flatten(0, -2)).view(*own_BP.shape, -1)
        else:
            rows_BPR = hidden * own_BP.unsqueeze(-1)
        filters_R1K = weight_RK.to(hidden.dtype).unsqueeze(1)
        filtered_BPR = F.conv1d(
            rows_BPR.transpose(1, 2), filters_R1K, padding=filters_R1K.shape[-1] // 2, groups=len(filters_R1K)
        ).transpose(1, 2)
        if self.rows.are_packed:
            return hidden + filtered_BPR.flatten(0, 1)[self.rows.packed(hidden.device)].view(hidden.shape)
        return hidden + filtered_BPR * own_BP.unsqueeze(-1)


class ConvLora(BetweenLora):
    """See the module."""

    name, own, crosses = "conv_lora", "lora_conv_", False

    def check(self, loaded: LoadedModel) -> None:
        """Raise AdapterError for models whose rows are patches of time and frequency."""
        if loaded.family.name == "ast" and loaded.module.config.model_type != "whisper":
            raise AdapterError(
                f"adapter.kind={self.name} filters rows in order of time, and those of {loaded.checkpoint} are patches "
                "of time and frequency. Take adapter.kind=lora or gated_lora."
            )

    def shape(self, layer: Any, settings: AdapterSettings) -> dict[str, tuple[int, ...]]:
        """A filter for each rank."""
        return {f"{_FILTERS}.weight": (layer.r["default"], settings.conv_kernel)}

    def shared(self, settings: AdapterSettings) -> dict[str, tuple[int, ...]]:
        """Nothing."""
        return {}

    def between(self, layers: Mapping[str, Any], rows: Rows, *, seed: int) -> Between:
        """The convolution."""
        return _Convolution(layers, rows)

    def merge(self, loaded: LoadedModel) -> dict[str, Tensor] | None:
        """No plain linear filters its input over time; None unless all filters are still 0."""
        return None if self._filters(loaded) else super().merge(loaded)

    def low_rank(self, loaded: LoadedModel) -> dict[str, tuple[Tensor, Tensor]] | None:
        """None unless all filters are still 0."""
        return None if self._filters(loaded) else super().low_rank(loaded)

    def _filters(self, loaded: LoadedModel) -> bool:
        return any(bool(value.any()) for value in self.own_parameters(loaded).values())

    def activations(self, module: nn.Module) -> tuple[int, float]:
        """Of LoRA; with a filter, its input and A's output as well."""
        rank, dropout = super().activations(module)
        return (2 * rank if hasattr(module, _FILTERS) else rank), dropout


CONV_LORA = ConvLora()
