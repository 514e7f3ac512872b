"""Pretrained speech encoders as parts: built, made plain, and computed so that padding never changes a state.

Two kinds are known. `whisper` reads log-mel frames in a window of 30 s, of which silence behind the clips is left out
(`models.thinning`) or cut off, with padding masked. `waveform` (wav2vec 2.0, HuBERT, WavLM, wav2vec 2.0 conformer)
reads samples; what would mix padding into speech there is taken out one by one: statistics over time (group norm) are
taken of each clip alone, and the conformer's convolutions see zeros beyond a clip's end, as they do when it stands
alone.

Shape letters: B clips, T frames or samples, F bins, P encoder positions, C channels, D width, H heads.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonotune.features.frontend import Frontend, LogMel, RawWaveform
from sonotune.features.normalization import valid_frames
from sonotune.models.audio_positions import AudioPositions, announce, of_samples
from sonotune.models.base import Component
from sonotune.models.encoder_rows import kind_of, positions_of, receptive_field, rows_of, steps_of
from sonotune.models.frame_merging.layers import MergedStates, run_layers
from sonotune.models.frame_merging.pairs import take
from sonotune.models.frame_merging.settings import NO_MERGING, FrameMerging, MergeStep
from sonotune.models.norms import fix_batch_norms
from sonotune.models.thinning import DEFAULT_THINNING, Thinning
from sonotune.types import Context

NO_POSITIONS: Final = r"\.(linear_pos|gru_rel_pos_linear|relative_k_proj)$"
"""Linears in the layers of encoders that take tables of distances or heads, and not states."""


def width_of(config: Any) -> int:
    """D of the encoder's states."""
    return int(config.d_model if kind_of(config) == "whisper" else config.hidden_size)


def prepare_config(config: Any) -> Any:
    """Settle, in place, what would make an encoder's output random or end in layers that a projector stands for.

    Masks over time and features come from `features.specaugment`, whose draws belong to clips and not to a global
    generator; dropped layers and the adapter behind wav2vec 2.0 (a projector of its own) are left out.
    """
    changes = {
        "layerdrop": 0.0,
        "encoder_layerdrop": 0.0,
        "mask_time_prob": 0.0,
        "mask_feature_prob": 0.0,
        "apply_spec_augment": False,
        "add_adapter": False,
    }
    for key, value in changes.items():
        if hasattr(config, key):
            setattr(config, key, value)
    return config


def build(config: Any) -> nn.Module:
    """An encoder with random weights, plain (`make_plain`)."""
    import transformers  # noqa: PLC0415
    from transformers.models.whisper.modeling_whisper import WhisperEncoder  # noqa: PLC0415

    if kind_of(config) == "whisper":
        return make_plain(WhisperEncoder._from_config(config, dtype=torch.get_default_dtype()))
    return make_plain(transformers.AutoModel.from_config(config, dtype=torch.get_default_dtype()))


def make_plain(encoder: nn.Module, *, fold: bool = True) -> nn.Module:
    """Fold reparametrisations away and install what keeps padding out; the function of a single clip is the same.

    Args:
        encoder: Changed in place.
        fold: Whether to fold; a checkpoint that plain `transformers` is to load again must keep its names.

    The positional convolution of wav2vec 2.0 is stored as direction and norm. One plain weight instead is what
    adapters, quantisation and merging address. WavLM reads the weights of its projections instead of calling them,
    which would pass an adapter by, so its attention is put by one that calls them.
    """
    for module in list(encoder.modules()):
        if fold and isinstance(module, nn.Conv1d) and nn.utils.parametrize.is_parametrized(module, "weight"):
            nn.utils.parametrize.remove_parametrizations(module, "weight")
            module._is_hf_initialized = True  # type: ignore[assignment]  # or `post_init` would draw it anew
        if type(module).__name__ == "WavLMAttention":
            module.torch_multi_head_self_attention = types.MethodType(_wavlm_attention, module)  # type: ignore[assignment]
        if type(module).__name__ == "Wav2Vec2ConformerConvolutionModule":
            module.glu = MaskedGate()
    fix_batch_norms(encoder)
    return encoder


class MaskedGate(nn.Module):
    """The gated linear unit before the conformer's depthwise convolution, zero beyond each clip's end."""

    def __init__(self) -> None:
        super().__init__()
        self.valid_BP: Tensor | None = None

    def forward(self, hidden_BCP: Tensor) -> Tensor:
        """Gate (B, 2C, P) -> (B, C, P)."""
        gated_BCP = F.glu(hidden_BCP, dim=1)
        return gated_BCP if self.valid_BP is None else gated_BCP * self.valid_BP.unsqueeze(1)


def _wavlm_attention(
    self: Any, hidden_states: Tensor, attention_mask: Tensor | None, gated_position_bias: Tensor
) -> tuple[Tensor, None]:
    """WavLM's self-attention with a gated position bias (B·H, P, P), through its submodules."""
    clips, positions, width = hidden_states.shape
    split = (clips, positions, self.num_heads, self.head_dim)
    query, key, value = (
        part(hidden_states).view(split).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
    )
    bias_BHPP = gated_position_bias.view(clips, self.num_heads, positions, positions).to(query.dtype)
    if attention_mask is not None:
        bias_BHPP = bias_BHPP.masked_fill(~attention_mask.bool()[:, None, None, :], float("-inf"))
    attended_BHPC = F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias_BHPP, dropout_p=self.dropout if self.training else 0.0
    )
    return self.out_proj(attended_BHPC.transpose(1, 2).reshape(clips, positions, width)), None


def contexts_of(config: Any, context: Context | None) -> dict[str, Any]:
    """Fields of a `LoadedModel` for an encoder with pretrained weights: Whisper's were trained on its whole window."""
    if kind_of(config) != "whisper":
        return {"context": context or "full"}
    trained = ("full", "thinned")  # published weights score alike in both (benchmarks/real_models)
    return {"context": context or "thinned", "trained_contexts": trained, "full_after_thinned": True}


def layers_of(encoder: Any) -> Any:
    """The numbered layers of an encoder."""
    return encoder.layers if kind_of(encoder.config) == "whisper" else encoder.encoder.layers


def frontend_of(config: Any) -> Frontend:
    """The frontend an encoder of this configuration usually has, where no feature extractor can be asked."""
    if kind_of(config) == "whisper":
        return LogMel(config.num_mel_bins, window_s=config.max_source_positions / 50)
    return RawWaveform()


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """What an encoder makes of a batch.

    Attributes:
        states: (B, P, D); first those of the clips themselves, in order.
        positions: How many of them are each clip's own (B,); all P where the whole window is computed.
        log_weights: Logarithm of how many positions each state stands for as a key of attention (B, P), -inf for
            padding; None where each stands for itself and there is no padding, and where states behind a clip's own
            are all padding of a `waveform` encoder.
        source: Where nothing was merged None, else the state that each of a clip's own positions went to (B, L).
    """

    states: Tensor
    positions: Tensor
    log_weights: Tensor | None = None
    source: Tensor | None = None

    @property
    def own_states(self) -> Tensor:
        """The states of the clips themselves, to the longest one (B, P', D)."""
        return self.states[:, : int(self.positions.max())]

    @property
    def unmerged_states(self) -> Tensor:
        """The states as they are, or where any were merged, each once for every own position it stands for (B, L, D).

        So a state has the time of its position again.
        """
        return self.states if self.source is None else take(self.states, self.source)


def encode(
    encoder: Any,
    inputs_BTF: Tensor,
    lengths_B: Tensor,
    *,
    context: Context,
    thinning: Thinning = DEFAULT_THINNING,
    merging: FrameMerging = NO_MERGING,
) -> Encoded:
    """Compute a batch; a clip gives the same states alone and in any batch.

    Args:
        encoder: From `build`.
        inputs_BTF: Log-mel frames, or samples with F = 1.
        lengths_B: Valid frames or samples.
        context: How much of Whisper's window is computed; with `full` the frames fill it.
        thinning: What `thinned` keeps.
        merging: Which of a clip's own positions are merged on the way; the positions of the result are what is left.
    """
    steps: dict[int, MergeStep] = {}
    if merging.ratio:
        rows = rows_of(encoder.config, inputs_BTF, lengths_B, context=context, thinning=thinning)
        steps = steps_of(encoder.config, rows, merging)
    if kind_of(encoder.config) == "whisper":
        states_BPD, weights_BP, positions_B = _mel_stem(
            encoder, inputs_BTF, lengths_B, context=context, thinning=thinning
        )
        if steps:
            merged = run_layers(encoder.layers, states_BPD, weights_BP, steps=steps, merging=merging)
            encoded = _encoded(merged, encoder.layer_norm)
            if context == "full":  # all of the window counts as the clip's
                before = next(iter(steps.values())).before
                lost = [one - left for one, left in zip(before, merged.own, strict=True)]
                encoded = replace(encoded, positions=positions_B - torch.tensor(lost, device=positions_B.device))
            return encoded
        mask = None if weights_BP is None else weights_BP[:, None, None, :]
        for layer in encoder.layers:
            states_BPD = layer(states_BPD, mask)
        return Encoded(states=encoder.layer_norm(states_BPD), positions=positions_B, log_weights=weights_BP)
    states_BPD, positions_B = _waveform_stem(encoder, inputs_BTF.squeeze(-1), lengths_B)
    if steps:
        return _merged_waveform(encoder, states_BPD, positions_B, steps=steps, merging=merging)
    return _encode_waveform(encoder, states_BPD, positions_B)


def _encoded(merged: MergedStates, norm: Callable[[Tensor], Tensor]) -> Encoded:
    return Encoded(
        states=norm(merged.states),
        positions=torch.tensor(merged.own, device=merged.states.device),
        log_weights=merged.log_weights,
        source=merged.source,
    )


def _mel_stem(
    encoder: Any, inputs_BTF: Tensor, lengths_B: Tensor, *, context: Context, thinning: Thinning
) -> tuple[Tensor, Tensor | None, Tensor]:
    """What the layers of Whisper read (B, P, D), the logarithm of what each stands for, and own positions (B,)."""
    positions_B = positions_of(encoder.config, lengths_B)
    own_B, table_WD = positions_B, encoder.embed_positions.weight
    weights_BP: Tensor | None = None
    places_P: Tensor | None = None
    if context == "thinned":
        places_P, weights_BP = thinning.keep(positions_B, len(table_WD))
        states_BPD = _thinned_stem(encoder, inputs_BTF, places_P) + table_WD[places_P.to(table_WD.device)]
    elif context == "full":
        states_BPD = _stem(encoder, inputs_BTF)
        positions_B = torch.full_like(positions_B, states_BPD.shape[1])
        states_BPD = states_BPD + table_WD[: states_BPD.shape[1]]
    else:
        longest = int(positions_B.max())
        states_BPD = _stem(encoder, inputs_BTF)[:, :longest] + table_WD[:longest]
        if int(positions_B.min()) < longest:
            weights_BP = torch.zeros(len(positions_B), longest)
            weights_BP = weights_BP.masked_fill(~valid_frames(positions_B.cpu(), longest), -math.inf)
    if weights_BP is not None:
        weights_BP = weights_BP.to(states_BPD.device, states_BPD.dtype)
    places_P = torch.arange(states_BPD.shape[1]) if places_P is None else places_P
    announce(
        encoder,
        lambda: AudioPositions(inputs=inputs_BTF, lengths=lengths_B, starts=2 * places_P - 1, width=3, own=own_B),
    )
    return F.dropout(states_BPD, p=encoder.dropout, training=encoder.training), weights_BP, positions_B


def _stem(encoder: Any, inputs_BTF: Tensor) -> Tensor:
    """Convolve frames (B, T, F) -> (B, T/2, D)."""
    features_BFT = inputs_BTF.transpose(1, 2).to(encoder.conv1.weight.dtype)
    states_BPD: Tensor = F.gelu(encoder.conv2(F.gelu(encoder.conv1(features_BFT)))).transpose(1, 2)
    return states_BPD


_SILENT_FRAMES = 6
"""Frames of silence put behind a batch's own, so that one position reads nothing but silence, and none of the stem's
zero padding: a position reads five frames, and the frontend gives four behind the longest clip, of which the first two
may still hold some of it."""


def _thinned_stem(encoder: Any, inputs_BTF: Tensor, places_P: Tensor) -> Tensor:
    """The stem's output (B, P, D) at some places of the window, computed no further than the clips go.

    The last frame of every clip is its floor, which is what the whole window holds behind it. The stem makes one vector
    of it, at every place but the window's last, where it reads its own zero padding.
    """
    window = 2 * encoder.config.max_source_positions
    frames, last = inputs_BTF.shape[1], int(places_P[-1])
    reaches_end = last == window // 2 - 1
    wanted = window if reaches_end else min(frames + _SILENT_FRAMES + frames % 2, window)
    behind = inputs_BTF[:, -1:].expand(-1, max(0, wanted - frames), -1)
    states_BPD = _stem(encoder, torch.cat([inputs_BTF, behind], dim=1))
    if wanted == window:
        return states_BPD[:, places_P.to(states_BPD.device)]
    silent = states_BPD.shape[1] - 2  # the last one reads zero padding
    return states_BPD[:, places_P.clamp_max(silent).to(states_BPD.device)]


def _waveform_stem(encoder: Any, waveforms_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """What is read before positions are added (B, P, D), and positions of each clip (B,)."""
    positions_B = positions_of(encoder.config, lengths_B).to(waveforms_BT.device)
    short = receptive_field(encoder.config).reach - waveforms_BT.shape[1]
    if short > 0:  # a clip shorter than the convolutions reach is heard with silence behind it
        waveforms_BT = F.pad(waveforms_BT, (0, short))
    stem = encoder.feature_extractor
    # A frozen stem is not to be differentiated: `transformers` makes its input require a gradient unless told.
    stem._requires_grad = any(parameter.requires_grad for parameter in stem.parameters())
    features_BPC = _convolve(encoder, waveforms_BT, lengths_B)[:, : int(positions_B.max())]
    projected = encoder.feature_projection(features_BPC)
    states_BPD = projected[0] if isinstance(projected, tuple) else projected
    announce(
        encoder,
        lambda: of_samples(waveforms_BT, lengths_B, positions_B, states_BPD.shape[1], config=encoder.config),
    )
    return states_BPD, positions_B


def _encode_waveform(encoder: Any, hidden_BPD: Tensor, positions_B: Tensor) -> Encoded:
    valid_BP = valid_frames(positions_B, hidden_BPD.shape[1])
    mask = None if bool(valid_BP.all()) else valid_BP
    for module in encoder.modules():
        if isinstance(module, MaskedGate):
            module.valid_BP = mask
    states_BPD = encoder.encoder(hidden_BPD, attention_mask=mask).last_hidden_state
    return Encoded(states=states_BPD, positions=positions_B)


def _merged_waveform(
    encoder: Any, hidden_BPD: Tensor, positions_B: Tensor, *, steps: dict[int, MergeStep], merging: FrameMerging
) -> Encoded:
    """What the encoders of wav2vec 2.0 and HuBERT in `transformers` compute, with pairs merged between their layers."""
    body, norm_first = encoder.encoder, bool(encoder.config.do_stable_layer_norm)
    valid_BP = valid_frames(positions_B, hidden_BPD.shape[1])
    hidden_BPD = hidden_BPD.masked_fill(~valid_BP.unsqueeze(2), 0.0)
    hidden_BPD = hidden_BPD + body.pos_conv_embed(hidden_BPD)
    states_BPD = body.dropout(hidden_BPD if norm_first else body.layer_norm(hidden_BPD))
    weights_BP = torch.zeros_like(states_BPD[..., 0]).masked_fill(~valid_BP, -math.inf)
    merged = run_layers(body.layers, states_BPD, weights_BP, steps=steps, merging=merging)
    return _encoded(merged, body.layer_norm if norm_first else nn.Identity())


def _convolve(encoder: Any, waveforms_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Features (B, P, C) of the convolutions; with group norm over time, of each clip at its own length."""
    waveforms_BT = waveforms_BT.to(next(encoder.feature_projection.parameters()).dtype)
    if encoder.config.feat_extract_norm != "group" or int(lengths_B.min()) >= waveforms_BT.shape[1]:
        features_BCP: Tensor = encoder.feature_extractor(waveforms_BT)
        return features_BCP.transpose(1, 2)
    shortest = receptive_field(encoder.config).reach
    alone = [
        encoder.feature_extractor(waveform_T[None, : max(length, shortest)])[0].transpose(0, 1)
        for waveform_T, length in zip(waveforms_BT, lengths_B.tolist(), strict=True)
    ]
    return nn.utils.rnn.pad_sequence(alone, batch_first=True)


def components_of(encoder: Any, prefix: str) -> tuple[Component, Component]:
    """Stem and encoder as components.

    Args:
        encoder: From `build`.
        prefix: Its name in the whole model.
    """
    if kind_of(encoder.config) == "whisper":
        stem = tuple(f"{prefix}.{name}" for name in ("conv1", "conv2", "embed_positions"))
        inner, body = prefix, encoder
        feed_forward = r"\.fc[12]\."
    else:
        names = ("feature_extractor", "feature_projection", "encoder.pos_conv_embed", "encoder.embed_positions")
        stem = tuple(f"{prefix}.{name}" for name in (*names, "masked_spec_embed"))
        inner, body = f"{prefix}.encoder", encoder.encoder
        feed_forward = r"\.(feed_forward|ffn[12])\."
    layers = tuple(f"{inner}.layers.{index}" for index in range(len(body.layers)))
    return (
        Component(name="stem", prefixes=stem, parts={"convolutions": r"\.conv\d?\.|\.conv_layers\."}),
        Component(
            name="encoder",
            prefixes=(f"{inner}.layers", f"{inner}.layer_norm"),
            layers=layers,
            parts={"attention": r"\.(self_attn|attention)\.", "feed_forward": feed_forward},
        ),
    )


def constants_of(encoder: Any, prefix: str) -> frozenset[str]:
    """Parameters that never train: Whisper's sinusoids, and the conformer's positional convolution, which is unused."""
    if kind_of(encoder.config) == "whisper":
        return frozenset({f"{prefix}.embed_positions.weight"})
    if encoder.config.model_type != "wav2vec2-conformer":
        return frozenset()
    names = (name for name, _ in encoder.named_parameters() if name.startswith("encoder.pos_conv_embed."))
    return frozenset(f"{prefix}.{name}" for name in names)
