"""Cheap properties of each frame of a clip, from its log-mel alone: how loud, how changing, how much like speech.

They are the same in training and inference, for both have the log-mel that the encoder gets. Each is brought to zero
mean and unit variance over the clip's own frames, and within -5 to 5, so neither gain nor padding nor the other clips
of a batch count.
Masks of SpecAugment are in the log-mel that the encoder gets, and so in these as well.

Models of waveforms get none; theirs is computed here (`log_mel_of_samples`).

Seam: a probability of speech or of a change of speakers, from another model, would be one more channel behind these.
It needs the waveform, which a batch no longer has, so it would have to travel with the batch.

Shape letters: B clips, T frames, S samples, F mel bands, C channels, P positions, W frames of a position.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from sonotune.features.mel import slaney_filters
from sonotune.features.normalization import valid_frames
from sonotune.runs import generator

CHANNELS: Final = ("energy", "energy_change", "flux", "spectral_entropy", "tilt", "speech_activity")
"""Of a frame, in order (`frame_properties`)."""
FRAME_SAMPLES: Final = 400
HOP_SAMPLES: Final = 160
"""Of the log-mel of waveforms at 16 kHz: frame t reads the samples from `HOP_SAMPLES` t on."""
WHOLE_CLIP: Final = -(2**31)
"""First frame of a position that stands for the whole clip, such as a class token."""

_BANDS: Final = 40
_LEAST_STD: Final = 1e-3  # a property that never changes becomes 0, not noise
_LIMIT: Final = 5.0  # silence behind a clip may lie far from all that a loud clip has
_SHARPNESS: Final = 4.0  # log10 / 4 of Whisper's features times this is the log10 of the power
_SPEECH_SLOPE: Final = 3.0
# Of whole clips of read speech, in Whisper's features: what they are about, and how far clips of several corpora lie
# apart (spoken digits, Swahili and Breton sentences; 120 clips each).
_CLIP_CENTRE: Final = (-0.13, 0.28, 0.042, 0.84, 0.8, 0.52)
_CLIP_SCALE: Final = (0.1, 0.05, 0.007, 0.03, 0.13, 0.03)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameProperties:
    """Properties of the frames of some clips, in single precision.

    Attributes:
        frames: (B, T, C), T the frames of the longest clip; frames behind a clip have those of silence.
        silence: What a silent frame of each clip has (B, C).
        lengths: Frames of each clip (B,).
        clip: Of each clip as a whole (B, C), against what clips usually have and not against itself: the means of the
            channels and, in the place of the change of energy, whose mean is always about 0, the standard deviation of
            the energy. Within -5 to 5.
    """

    frames: Tensor
    silence: Tensor
    lengths: Tensor
    clip: Tensor

    def at(self, starts_P: Tensor, width: int) -> Tensor:
        """Means over the frames that positions read.

        Args:
            starts_P: First frame of each position; frames before the clip do not count, those behind it are silence.
                `WHOLE_CLIP` takes the mean of the clip's own.
            width: Frames that a position reads.

        Returns:
            (B, P, C).
        """
        frames = self.frames.shape[1]
        starts_P = starts_P.to(self.frames.device)
        places_PW = starts_P.unsqueeze(1) + torch.arange(width, device=starts_P.device)
        counts_PW = (places_PW >= 0).to(self.frames.dtype)
        silent_BTC = torch.cat([self.frames, self.silence.unsqueeze(1)], dim=1)
        read_BPWC = silent_BTC[:, places_PW.clamp(0, frames)]
        means_BPC = torch.einsum("bpwc,pw->bpc", read_BPWC, counts_PW)
        means_BPC = means_BPC / counts_PW.sum(dim=1).clamp_min(1).unsqueeze(1)
        whole_P = starts_P == WHOLE_CLIP
        return torch.where(whole_P[:, None], self._mean().unsqueeze(1), means_BPC) if bool(whole_P.any()) else means_BPC

    def _mean(self) -> Tensor:
        valid_BT1 = valid_frames(self.lengths, self.frames.shape[1]).unsqueeze(-1)
        return (self.frames * valid_BT1).sum(dim=1) / self.lengths.clamp_min(1).unsqueeze(1)

    def shuffled(self, seed: int) -> FrameProperties:
        """The same with the frames of each clip in another order: a function of the seed and the clip's length."""
        frames = self.frames.clone()
        for row, length in enumerate(self.lengths.tolist()):
            order = torch.from_numpy(generator(seed, "frame order", length).permutation(length))
            frames[row, :length] = self.frames[row, order.to(frames.device)]
        return replace(self, frames=frames)


@torch.no_grad()
def frame_properties(log_mel_BTF: Tensor, lengths_B: Tensor) -> FrameProperties:
    """Properties of each frame.

    Args:
        log_mel_BTF: Log-mel as an encoder gets it, on about Whisper's scale; what lies behind a clip is not looked at.
        lengths_B: Frames of each clip, at least 1.

    Returns:
        The channels of `CHANNELS`: mean over the bands; its change from the frame before; the mean rise of a band from
        the frame before (positive spectral flux); the entropy of the spectrum, 1 where it is flat; the low quarter of
        the bands over the high quarter; and a soft decision whether the frame is louder than the clip's mean, the
        logistic function of three times the normalised energy.
    """
    lengths_B = lengths_B.to(log_mel_BTF.device)
    log_mel_BTF = log_mel_BTF[:, : int(lengths_B.max())].float()
    valid_BT = valid_frames(lengths_B, log_mel_BTF.shape[1])
    log_mel_BTF = log_mel_BTF.masked_fill(~valid_BT.unsqueeze(-1), 0.0)
    energy_BT = log_mel_BTF.mean(dim=-1)
    rise_BTF = torch.diff(log_mel_BTF, dim=1, prepend=log_mel_BTF[:, :1])
    logs_BTF = (_SHARPNESS * log_mel_BTF).log_softmax(dim=-1)
    entropy_BT = -(logs_BTF.exp() * logs_BTF).sum(dim=-1) / math.log(log_mel_BTF.shape[-1])
    quarter = max(1, log_mel_BTF.shape[-1] // 4)
    tilt_BT = log_mel_BTF[..., :quarter].mean(dim=-1) - log_mel_BTF[..., -quarter:].mean(dim=-1)
    raw_BTC = torch.stack(
        [energy_BT, rise_BTF.mean(dim=-1), rise_BTF.clamp_min(0).mean(dim=-1), entropy_BT, tilt_BT], dim=-1
    )
    quiet_B = energy_BT.masked_fill(~valid_BT, math.inf).amin(dim=1)
    zero_B, one_B = torch.zeros_like(quiet_B), torch.ones_like(quiet_B)
    silence_BC = torch.stack([quiet_B, zero_B, zero_B, one_B, zero_B], dim=-1)
    mean_BC, std_BC = _moments(raw_BTC, valid_BT)
    frames_BTC = _with_activity((raw_BTC - mean_BC.unsqueeze(1)) / (std_BC.unsqueeze(1) + _LEAST_STD))
    silence_BC = _with_activity((silence_BC - mean_BC) / (std_BC + _LEAST_STD))
    frames_BTC = torch.where(valid_BT.unsqueeze(-1), frames_BTC, silence_BC.unsqueeze(1))
    spoken_B = (frames_BTC[..., -1] * valid_BT).sum(dim=1) / lengths_B.clamp_min(1)
    clip_BC = torch.stack([mean_BC[:, 0], std_BC[:, 0], *mean_BC[:, 2:].unbind(dim=1), spoken_B], dim=-1)
    clip_BC = (clip_BC - clip_BC.new_tensor(_CLIP_CENTRE)) / clip_BC.new_tensor(_CLIP_SCALE)
    clip_BC = clip_BC.clamp(-_LIMIT, _LIMIT)
    return FrameProperties(frames=frames_BTC, silence=silence_BC, lengths=lengths_B, clip=clip_BC)


def _moments(values_BTC: Tensor, valid_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, C) over valid frames."""
    valid_BT1 = valid_BT.unsqueeze(-1)
    counts_B1 = valid_BT.sum(dim=1, keepdim=True).clamp_min(1)
    mean_BC = (values_BTC * valid_BT1).sum(dim=1) / counts_B1
    square_BTC = (values_BTC - mean_BC.unsqueeze(1)).square() * valid_BT1
    return mean_BC, (square_BTC.sum(dim=1) / counts_B1).sqrt()


def _with_activity(normalised: Tensor) -> Tensor:
    """Within bounds, and with the soft speech activity as one more channel (..., C)."""
    normalised = normalised.clamp(-_LIMIT, _LIMIT)
    return torch.cat([normalised, torch.sigmoid(_SPEECH_SLOPE * normalised[..., :1])], dim=-1)


@torch.no_grad()
def log_mel_of_samples(samples_BS: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """Log-mel of waveforms at 16 kHz, on Whisper's scale, and frames of each clip.

    Args:
        samples_BS: Each clip with anything behind it.
        lengths_B: Samples of each clip.

    Returns:
        (B, T, F) and (B,); frames lie wholly inside the clip, of which a short one has one.
    """
    lengths_B = lengths_B.to(samples_BS.device)
    samples_BS = samples_BS.float().masked_fill(~valid_frames(lengths_B, samples_BS.shape[1]), 0.0)
    if short := max(0, FRAME_SAMPLES - samples_BS.shape[1]):
        samples_BS = torch.nn.functional.pad(samples_BS, (0, short))
    window = torch.hann_window(FRAME_SAMPLES, device=samples_BS.device)
    spectrum_BTN = torch.fft.rfft(samples_BS.unfold(1, FRAME_SAMPLES, HOP_SAMPLES) * window)
    power_BTN = torch.view_as_real(spectrum_BTN).square().sum(dim=-1)
    log_mel_BTF = ((power_BTN @ _filters().to(samples_BS.device)).clamp_min(1e-10).log10() + 4.0) / 4.0
    frames_B = torch.div(lengths_B - FRAME_SAMPLES, HOP_SAMPLES, rounding_mode="floor").clamp_min(0) + 1
    return log_mel_BTF, frames_B


@functools.cache
def _filters() -> Tensor:
    return torch.from_numpy(slaney_filters(_BANDS, FRAME_SAMPLES, 16_000).T).float()
