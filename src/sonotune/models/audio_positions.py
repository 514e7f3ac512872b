"""Which frames of the audio the rows of an encoder's linears stand for, told before a batch is computed.

An adapter that depends on time has to know for every row of its input what is heard there. The code that computes an
encoder knows it, and says it (`announce`) to whoever asked to be told (`observe`). A family whose encoders say it has
`positioned_modules`. Nothing is interpolated: a position reads whole frames at a fixed distance.

What was announced holds until the next batch, which is what re-computation under gradient checkpointing needs.

Shape letters: B clips, T frames or samples, F bins, P positions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sonotune.errors import ModelError
from sonotune.features.frame_properties import (
    FRAME_SAMPLES,
    HOP_SAMPLES,
    FrameProperties,
    frame_properties,
    log_mel_of_samples,
)
from sonotune.models.base import LoadedModel
from sonotune.models.encoder_rows import receptive_field

_OBSERVER: Final = "audio_observer"
_ROWS: Final = "decoded_rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioPositions:
    """Where the rows of a batch lie in the audio.

    Attributes:
        inputs: Log-mel (B, T, F), or samples (B, T) at 16 kHz.
        lengths: Frames or samples of each clip (B,).
        starts: First log-mel frame that each position reads (P,); see `FrameProperties.at`. Of samples, frames are
            those of `log_mel_of_samples`.
        width: Frames that a position reads.
        own: Positions of each clip itself (B,): the first of its row.
        packed: Whether linears take the own positions of all clips one after the other (N, D), and not (B, P, D).
        bands: Rows of a clip are so many series of positions in time, one behind the other, after class tokens.
    """

    inputs: Tensor
    lengths: Tensor
    starts: Tensor
    width: int
    own: Tensor
    packed: bool = False
    bands: int = 1

    def properties(self) -> FrameProperties:
        """Of the frames of each clip."""
        if self.inputs.ndim == 2:
            return frame_properties(*log_mel_of_samples(self.inputs, self.lengths))
        return frame_properties(self.inputs, self.lengths)


Observer = Callable[[AudioPositions], None]


def observe(encoder: nn.Module, observer: Observer) -> None:
    """Have `observer` told of each batch before the layers of the encoder compute it; there is one at most."""
    setattr(encoder, _OBSERVER, observer)


def announce(encoder: nn.Module, positions: Callable[[], AudioPositions]) -> None:
    """Tell whoever asked; `positions` is called only if somebody did."""
    observer: Observer | None = getattr(encoder, _OBSERVER, None)
    if observer is not None:
        decode_rows(encoder, None)
        observer(positions())


def decode_rows(encoder: nn.Module, rows: Tensor | None) -> None:
    """Say which clips of the last batch a decoder computes next, in order; None stands for all."""
    setattr(encoder, _ROWS, rows)


def decoded_rows(encoder: nn.Module) -> Tensor | None:
    """What `decode_rows` said."""
    rows: Tensor | None = getattr(encoder, _ROWS, None)
    return rows


def of_samples(inputs_BT: Tensor, lengths_B: Tensor, own_B: Tensor, positions: int, *, config: Any) -> AudioPositions:
    """Positions of convolutions over samples.

    Args:
        inputs_BT: Samples at 16 kHz.
        lengths_B: Of each clip.
        own_B: Positions of each clip.
        positions: P.
        config: Has `conv_kernel` and `conv_stride`.

    Raises:
        ModelError: Positions are no whole number of log-mel frames apart.
    """
    reach, step = receptive_field(config)
    if step % HOP_SAMPLES:
        raise ModelError(
            f"positions of this encoder are {step} samples apart, which is no whole number of frames of {HOP_SAMPLES} "
            "samples, so that no frame belongs to a position. Take adapter.kind=lora."
        )
    first = round((reach - FRAME_SAMPLES) / 2 / HOP_SAMPLES)
    starts_P = torch.arange(positions) * (step // HOP_SAMPLES) + first - 1
    return AudioPositions(inputs=inputs_BT, lengths=lengths_B, starts=starts_P, width=3, own=own_B)


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionedModules:
    """Linears that take the positions of an encoder, or rows made of them.

    Attributes:
        encoder: The module that announces.
        linears: Full names of the linears in its layers that take its positions.
        crossing: Full names of the linears of a decoder that take its states.
    """

    encoder: nn.Module
    linears: tuple[str, ...]
    crossing: tuple[str, ...] = ()


@runtime_checkable
class PositionedFamily(Protocol):
    """A family whose encoder says where its positions lie in the audio."""

    def positioned_modules(self, loaded: LoadedModel) -> PositionedModules:
        """Which linears take them; raises ModelError, with the reason, where this architecture does not say."""
        ...


def find_positioned(loaded: LoadedModel) -> PositionedModules:
    """The linears of a plain model that take positions of the audio.

    Raises:
        ModelError: The family does not say where positions lie.
    """
    family = loaded.family
    if not isinstance(family, PositionedFamily):
        raise ModelError(
            f"models of the family {family.name} do not say which frames their positions stand for. "
            "Take adapter.kind=lora."
        )
    return family.positioned_modules(loaded)


def in_encoder(
    loaded: LoadedModel, encoder: nn.Module, *, without: str = r"(?!)", crossing: str = r"(?!)"
) -> PositionedModules:
    """The linears in the numbered layers of the component `encoder`.

    Args:
        loaded: The model.
        encoder: The module that announces.
        without: Regular expression over names of linears there that take something else.
        crossing: Regular expression over names of linears of a decoder that take the encoder's states.
    """
    homes = tuple(f"{layer}." for layer in loaded.component("encoder").layers)
    inside = tuple(name for name in loaded.linears if name.startswith(homes) and not re.search(without, name))
    return PositionedModules(
        encoder=encoder,
        linears=inside,
        crossing=tuple(name for name in loaded.linears if re.search(crossing, name)),
    )
