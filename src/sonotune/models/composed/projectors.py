"""From encoder states to what a language model takes, and the blocks by which it can listen without a prompt.

Every projector takes states (B, P, D) and lengths (B,), returns (B, Q, E) and lengths (B,), and gives a clip the same
output alone and in any batch. Parameters stand in modules of their own (`Latents`, `Gate`), because what trains in full
precision beside an adapter is named by module.

Shape letters: B clips, P encoder positions, Q audio positions, D encoder width, E language model width, W positions of
a window, N windows, K latents, L text positions, H heads, C width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonotune.errors import ModelError
from sonotune.features.normalization import valid_frames


class StackedLinear(nn.Module):
    """Neighbouring states side by side, then two linear layers with a ReLU between.

    Source: Ma et al. 2024, SLAM-ASR (arXiv 2402.08846), section 3.
    """

    def __init__(self, inputs: int, outputs: int, *, downsample: int, hidden: int, **_: int) -> None:
        super().__init__()
        self.downsample = downsample
        self.narrow = nn.Linear(inputs * downsample, hidden)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, states_BPD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Q is P over `downsample`, rounded up; a last group that is not full is filled with zeros."""
        groups_BQKD = _groups(states_BPD, lengths_B, self.downsample)
        return self.out(F.relu(self.narrow(groups_BQKD.flatten(2)))), _ceil(lengths_B, self.downsample)


class PooledMlp(nn.Module):
    """The mean of neighbouring states, a norm, then two linear layers with a GELU between.

    Source: Liu et al. 2023, LLaVA-1.5 (arXiv 2310.03744), section 3.2; pooling as in Chu et al. 2023 (2311.07919).
    """

    def __init__(self, inputs: int, outputs: int, *, downsample: int, hidden: int, **_: int) -> None:
        super().__init__()
        self.downsample = downsample
        self.norm = nn.LayerNorm(inputs)
        self.narrow = nn.Linear(inputs, hidden)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, states_BPD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Q is P over `downsample`, rounded up; a last group that is not full is the mean of what it has."""
        groups_BQKD = _groups(states_BPD, lengths_B, self.downsample)
        places_QK = torch.arange(groups_BQKD.shape[1] * self.downsample, device=lengths_B.device)
        own_BQK = (places_QK < lengths_B.unsqueeze(1)).view(len(lengths_B), -1, self.downsample)
        mean_BQD = groups_BQKD.sum(dim=2) / own_BQK.sum(dim=2, keepdim=True).clamp_min(1).to(states_BPD.dtype)
        return self.out(F.gelu(self.narrow(self.norm(mean_BQD)))), _ceil(lengths_B, self.downsample)


class StridedConvolutions(nn.Module):
    """One strided convolution for each prime factor of `downsample`, each with a GELU, then a linear layer.

    Source: Li et al. 2021 (arXiv 2010.12829), the length adaptor between wav2vec 2.0 and a text decoder.
    """

    def __init__(self, inputs: int, outputs: int, *, downsample: int, hidden: int, **_: int) -> None:
        super().__init__()
        strides = _prime_factors(downsample)
        widths = [inputs, *[hidden] * len(strides)]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(widths[index], hidden, kernel_size=2 * stride - 1, stride=stride, padding=stride - 1)
            for index, stride in enumerate(strides)
        )
        self.norm = nn.LayerNorm(widths[-1])
        self.out = nn.Linear(widths[-1], outputs)

    def forward(self, states_BPD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Q is P over `downsample`, rounded up at every convolution."""
        hidden_BDP = _zero_padding(states_BPD, lengths_B).transpose(1, 2)
        for convolution in self.convolutions:
            hidden_BDP = F.gelu(convolution(hidden_BDP))
            lengths_B = _ceil(lengths_B, convolution.stride[0])  # type: ignore[index, arg-type]
            hidden_BDP = _zero_padding(hidden_BDP.transpose(1, 2), lengths_B).transpose(1, 2)
        return self.out(self.norm(hidden_BDP.transpose(1, 2))), lengths_B


class Latents(nn.Module):
    """Learned queries (K, width)."""

    def __init__(self, latents: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(latents, width) * 0.02)

    def forward(self, windows: int) -> Tensor:
        """The queries once for each window (N, K, width)."""
        return self.weight.unsqueeze(0).expand(windows, -1, -1)


class Attention(nn.Module):
    """Attention of one sequence to another, masked."""

    def __init__(self, width: int, context_width: int, *, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ModelError(
                f"a width of {width} cannot be cut into {heads} attention heads; the number of heads must divide it. "
                "Set another hidden_size or heads of the projector."
            )
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(context_width, width)
        self.v_proj = nn.Linear(context_width, width)
        self.out_proj = nn.Linear(width, width)

    def keys_values(self, context_BQE: Tensor) -> tuple[Tensor, Tensor]:
        """What is attended to, projected: two of (B, H, Q, C)."""
        return self._split(self.k_proj(context_BQE)), self._split(self.v_proj(context_BQE))

    def forward(self, hidden_BLE: Tensor, keys: Tensor, values: Tensor, mask_BQ: Tensor | None) -> Tensor:
        """Attend to projected keys and values; every row of the mask has a valid position."""
        attended_BHLC = F.scaled_dot_product_attention(
            self._split(self.q_proj(hidden_BLE)),
            keys,
            values,
            attn_mask=None if mask_BQ is None else mask_BQ[:, None, None, :],
        )
        attended_BLE: Tensor = self.out_proj(attended_BHLC.transpose(1, 2).flatten(2))
        return attended_BLE

    def _split(self, hidden_BLE: Tensor) -> Tensor:
        clips, positions, width = hidden_BLE.shape
        return hidden_BLE.reshape(clips, positions, self.heads, width // self.heads).transpose(1, 2)


class FeedForward(nn.Module):
    """Norm, two linear layers and a GELU."""

    def __init__(self, width: int, *, factor: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, factor * width)
        self.fc2 = nn.Linear(factor * width, width)

    def forward(self, hidden_BLE: Tensor) -> Tensor:
        """The change of the states, without the states themselves."""
        change_BLE: Tensor = self.fc2(F.gelu(self.fc1(self.norm(hidden_BLE))))
        return change_BLE


class PerceiverLayer(nn.Module):
    """Latents read a window, then each other, then think."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.read_norm = nn.LayerNorm(width)
        self.read = Attention(width, width, heads=heads)
        self.self_norm = nn.LayerNorm(width)
        self.self_attn = Attention(width, width, heads=heads)
        self.feed_forward = FeedForward(width)

    def forward(self, latents_NKD: Tensor, window_NWD: Tensor, mask_NW: Tensor) -> Tensor:
        """New latents (N, K, D)."""
        queries_NKD = self.read_norm(latents_NKD)
        latents_NKD = latents_NKD + self.read(queries_NKD, *self.read.keys_values(window_NWD), mask_NW)
        queries_NKD = self.self_norm(latents_NKD)
        latents_NKD = latents_NKD + self.self_attn(queries_NKD, *self.self_attn.keys_values(queries_NKD), None)
        thought_NKD: Tensor = self.feed_forward(latents_NKD)
        return latents_NKD + thought_NKD


class Perceiver(nn.Module):
    """A perceiver resampler: learned latents read one window of states after the other.

    A window has `latents · downsample` positions and becomes `latents` outputs, so the rate is that of the other
    projectors while what an output may hear is the whole window. Only windows with speech in them are computed.

    Source: Alayrac et al. 2022, Flamingo (arXiv 2204.14198), section 3.1.1, with windows as in Yu et al. 2023
    (arXiv 2309.13963).
    """

    def __init__(
        self, inputs: int, outputs: int, *, downsample: int, hidden: int, latents: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.window = latents * downsample
        self.narrow = nn.Linear(inputs, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.latents = Latents(latents, hidden)
        self.layers = nn.ModuleList(PerceiverLayer(hidden, heads=heads) for _ in range(depth))
        self.out_norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, states_BPD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Q is a multiple of the number of latents: `latents` for each window that has a valid position."""
        windows_BNWD = _groups(states_BPD, lengths_B, self.window)
        windows_B = _ceil(lengths_B, self.window)
        heard_BN = valid_frames(windows_B, windows_BNWD.shape[1])
        places_W = torch.arange(windows_BNWD.shape[1] * self.window, device=lengths_B.device)
        mask_BNW = (places_W < lengths_B.unsqueeze(1)).view(len(lengths_B), -1, self.window)
        window_NWD = self.norm(self.narrow(windows_BNWD[heard_BN]))
        latents_NKD = self.latents(len(window_NWD)).to(window_NWD.dtype)
        for layer in self.layers:
            latents_NKD = layer(latents_NKD, window_NWD, mask_BNW[heard_BN])
        heard_NKE = self.out(self.out_norm(latents_NKD))
        audio_BNKE = heard_NKE.new_zeros(*heard_BN.shape, *heard_NKE.shape[1:])
        audio_BNKE[heard_BN] = heard_NKE
        return audio_BNKE.flatten(1, 2), windows_B * latents_NKD.shape[1]


class Gate(nn.Module):
    """Multiplies by the tangens hyperbolicus of a learned number that starts at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_BLE: Tensor) -> Tensor:
        """Same shape."""
        return hidden_BLE * self.scale.tanh().to(hidden_BLE.dtype)


@dataclass(slots=True)
class EncodedAudio:
    """What the blocks of a batch attend to.

    Attributes:
        audio: Projected audio (B, Q, E).
        mask: Its valid positions (B, Q) bool.
        cache: Keys and values of each block, kept while decoding: they are the same at every step.
    """

    audio: Tensor
    mask: Tensor
    cache: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, object]) -> None:
        """A copy of a model has heard nothing yet; tensors of a training graph could not be copied either."""


class GatedCrossAttention(nn.Module):
    """Cross-attention and a feed-forward layer before a layer of a language model, both gated shut at first.

    Source: Alayrac et al. 2022, Flamingo (arXiv 2204.14198), section 3.1.2.
    """

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, width, heads=heads)
        self.attention_gate = Gate()
        self.feed_forward = FeedForward(width)
        self.feed_forward_gate = Gate()

    def forward(self, hidden_BLE: Tensor, encoded: EncodedAudio, index: int) -> Tensor:
        """States of the language model (B, L, E), with what is heard added; B may repeat clips, as beams do."""
        keys, values = encoded.cache.get(index) or self.attention.keys_values(encoded.audio.to(hidden_BLE.dtype))
        if not torch.is_grad_enabled():
            encoded.cache[index] = (keys, values)
        mask = encoded.mask
        if (beams := len(hidden_BLE) // len(mask)) > 1:
            keys, values, mask = (part.repeat_interleave(beams, dim=0) for part in (keys, values, mask))
        attended_BLE = self.attention(self.norm(hidden_BLE), keys, values, mask)
        hidden_BLE = hidden_BLE + self.attention_gate(attended_BLE)
        change_BLE: Tensor = self.feed_forward_gate(self.feed_forward(hidden_BLE))
        return hidden_BLE + change_BLE


PROJECTORS: Mapping[str, Callable[..., nn.Module]] = {
    "linear": StackedLinear,
    "mlp": PooledMlp,
    "perceiver": Perceiver,
    "conv": StridedConvolutions,
}


def outputs_of(kind: str, positions: int, *, downsample: int, latents: int) -> int:
    """Audio positions that a projector makes of so many encoder positions."""
    if kind == "perceiver":
        return -(-positions // (latents * downsample)) * latents
    return -(-positions // downsample)


def _groups(states_BPD: Tensor, lengths_B: Tensor, size: int) -> Tensor:
    """States in groups of neighbours (B, N, size, D), 0 where there is none."""
    states_BPD = F.pad(_zero_padding(states_BPD, lengths_B), (0, 0, 0, -states_BPD.shape[1] % size))
    clips, positions, width = states_BPD.shape
    return states_BPD.reshape(clips, positions // size, size, width)


def _zero_padding(states_BPD: Tensor, lengths_B: Tensor) -> Tensor:
    return states_BPD.masked_fill(~valid_frames(lengths_B, states_BPD.shape[1]).unsqueeze(-1), 0.0)


def _ceil(lengths_B: Tensor, step: int) -> Tensor:
    return torch.div(lengths_B + step - 1, step, rounding_mode="floor")


def _prime_factors(number: int) -> list[int]:
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors
