"""How many positions a speech encoder computes for a batch, and what each of them is: known from lengths alone.

Two kinds are known. `whisper` reads log-mel frames in a window of 30 s, `waveform` (wav2vec 2.0, HuBERT, WavLM,
wav2vec 2.0 conformer) reads samples. Where positions are merged, later layers compute fewer.

Shape letters: B clips, T frames or samples, F bins, P encoder positions, D width, H heads, C channels.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from sonotune.errors import ModelError
from sonotune.features.normalization import valid_frames
from sonotune.models.base import AUDIO, Stream
from sonotune.models.frame_merging.settings import NO_MERGING, FrameMerging, MergeStep, merge_steps
from sonotune.models.thinning import DEFAULT_THINNING, Thinning
from sonotune.types import Context

WAVEFORM_TYPES = ("wav2vec2", "hubert", "wavlm", "wav2vec2-conformer")
ENCODER_TYPES = ("whisper", *WAVEFORM_TYPES)
_MERGEABLE_TYPES = ("whisper", "wav2vec2", "hubert")


def kind_of(config: Any) -> Literal["whisper", "waveform"]:
    """How an encoder hears.

    Raises:
        ModelError: The configuration is of no known speech encoder.
    """
    if config.model_type == "whisper":
        return "whisper"
    if config.model_type in WAVEFORM_TYPES:
        return "waveform"
    raise ModelError(
        f"a {config.model_type!r} model cannot be the encoder; known encoders: {', '.join(ENCODER_TYPES)}. "
        "Give a checkpoint of one of these as encoder."
    )


def positions_of(config: Any, lengths_B: Tensor) -> Tensor:
    """Encoder positions (B,) of clips of so many frames or samples, at least 1."""
    if kind_of(config) == "whisper":
        return (lengths_B + 1) // 2
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        lengths_B = torch.div(lengths_B - kernel, stride, rounding_mode="floor") + 1
    return lengths_B.clamp_min(1)


class ReceptiveField(NamedTuple):
    """Samples that a position of convolutions reads, and samples from one position to the next."""

    reach: int
    step: int


def receptive_field(config: Any) -> ReceptiveField:
    """Of the convolutions of an encoder of waveforms (`conv_kernel`, `conv_stride`)."""
    reach, step = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        reach, step = reach + (kernel - 1) * step, step * stride
    return ReceptiveField(reach, step)


def positions_in(config: Any, duration_s: float) -> int:
    """Encoder positions of a clip of so many seconds at 16 kHz."""
    units = math.ceil(duration_s * 100) if kind_of(config) == "whisper" else round(duration_s * 16_000)
    return int(positions_of(config, torch.tensor([units])))


def merging_refusal(config: Any) -> str | None:
    """Why positions cannot be merged within an encoder of this configuration; None where they can."""
    if config.model_type in _MERGEABLE_TYPES:
        return None
    return (
        f"the attention of {config.model_type} goes by the distance of positions, which merging would change; its "
        "encoder cannot be merged within"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """How many positions an encoder computes for a batch, before anything is merged.

    Attributes:
        own: Of each clip itself.
        kept: Of each clip with what is kept of the window behind it.
        width: P, padding included.
    """

    own: tuple[int, ...]
    kept: tuple[int, ...]
    width: int


def rows_of(
    config: Any, inputs_BTF: Tensor, lengths_B: Tensor, *, context: Context, thinning: Thinning = DEFAULT_THINNING
) -> Rows:
    """The positions that `encode` computes for a batch, by its lengths; arguments as there."""
    own_B = positions_of(config, lengths_B).cpu()
    own, width = tuple(own_B.tolist()), int(own_B.max())
    kept = own
    if kind_of(config) == "whisper" and context == "full":
        width = (inputs_BTF.shape[1] + 1) // 2
        own, kept = tuple(min(one, width) for one in own), (width,) * len(own)
    elif kind_of(config) == "whisper" and context == "thinned":
        places_P, weights_BP = thinning.keep(own_B, config.max_source_positions)
        kept, width = tuple(weights_BP.isfinite().sum(dim=1).tolist()), len(places_P)
    return Rows(own=own, kept=kept, width=width)


def steps_of(config: Any, rows: Rows, merging: FrameMerging) -> dict[int, MergeStep]:
    """Layer -> what is merged of a batch after it (`merge_steps`)."""
    return merge_steps(merging, depth=config.num_hidden_layers, own=rows.own, kept=rows.kept)


def row_stages(config: Any, rows: Rows, merging: FrameMerging) -> list[tuple[int, tuple[int, ...], int]]:
    """(layers, own positions of each clip, P) of every run of layers that compute as many, the last with none left.

    Args:
        config: Of the encoder.
        rows: Before anything is merged.
        merging: What is.
    """
    stages, own, width, begun = [], rows.own, rows.width, 0
    for layer, step in steps_of(config, rows, merging).items():
        stages.append((layer - begun, own, width))
        begun, own, width = layer, step.after, step.width
    return [*stages, (config.num_hidden_layers - begun, own, width)]


def row_kinds(counts_B: Tensor, rows: int, kind: int = AUDIO) -> Tensor:
    """Kinds (B, P) int8 of rows of which each clip has the first so many."""
    return valid_frames(counts_B, rows).to(torch.int8) * kind


def streams_of(
    encoder: Any,
    prefix: str,
    inputs_BTF: Tensor,
    lengths_B: Tensor,
    *,
    context: Context,
    thinning: Thinning = DEFAULT_THINNING,
    merging: FrameMerging = NO_MERGING,
) -> tuple[Stream, ...]:
    """The rows that `encode` computes, for the linears of an encoder's layers; the last are those of its states.

    Args:
        encoder: From `build`.
        prefix: Its name in the whole model.
        inputs_BTF: Log-mel frames or samples; their shape counts alone.
        lengths_B: Valid frames or samples.
        context: As in `encode`. Positions of the window behind a clip are padding, though they are computed.
        thinning: As in `encode`.
        merging: As in `encode`.
    """
    config, name = encoder.config, re.escape(prefix)
    rows = rows_of(config, inputs_BTF, lengths_B, context=context, thinning=thinning)
    found, first = [], 0
    for layers, own, width in row_stages(config, rows, merging):
        kinds_BP = row_kinds(torch.tensor(own, device=lengths_B.device), width)
        numbers = "|".join(str(index) for index in range(first, first + layers))
        found.append((rf"^{name}\.(.*\.)?layers\.({numbers})\.", kinds_BP))
        first += layers
    before = [Stream(modules=modules, kinds=kinds_BP) for modules, kinds_BP in found[:-1]]
    return (
        *position_streams(config, name, found[-1][1]),
        *before,
        Stream(modules=rf"^{name}\.", kinds=found[-1][1]),
    )


def position_streams(config: Any, name: str, kinds_BP: Tensor, *, tables: Tensor | None = None) -> tuple[Stream, ...]:
    """Rows of the linears in an encoder that take something else than its states.

    WavLM's gate takes the states head by head (B, H, P, C). The conformer's table of distances belongs to no clip.

    Args:
        config: Of the encoder.
        name: Its name in the whole model, as a regular expression.
        kinds_BP: Of its states.
        tables: Positions that each table of distances is for; None where there is one, for all P.
    """
    if config.model_type == "wavlm":
        heads_BQ = kinds_BP.repeat(1, config.num_attention_heads)
        return (Stream(modules=rf"^{name}\..*\.gru_rel_pos_linear$", kinds=heads_BQ),)
    if config.model_type == "wav2vec2-conformer":
        sizes = torch.tensor([kinds_BP.shape[1]]) if tables is None else tables
        distances = row_kinds(2 * sizes - 1, 2 * int(sizes.max()) - 1)
        return (Stream(modules=rf"^{name}\..*\.linear_pos$", kinds=distances),)
    return ()
