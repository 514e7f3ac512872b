"""Frontends: waveforms of one batch to padded features with their valid lengths.

Each is tested equal to the `transformers` extractor it stands for, computes a whole batch at once, and never computes
thirty seconds of padding for three seconds of speech. A frontend keeps small constant tensors only, so it can be
pickled and crosses a fork.

Shape letters: B clips, S samples, T frames, F feature bins, N frequencies of the transform.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sonotune.errors import ModelError, first_line
from sonotune.features.mel import kaldi_filters, slaney_filters
from sonotune.features.normalization import Normalizer, valid_frames
from sonotune.features.waveforms import Waveforms, check_waveforms, pad_waveforms
from sonotune.registry import in_order, resolve


@runtime_checkable
class Frontend(Protocol):
    """Waveforms -> features.

    Attributes:
        sample_rate_hz: Rate that the waveforms must have.
        feature_bins: F.
        frames_per_second: Frames for each second of audio.
        max_duration_s: The longest clip that can be given; None where the model sets no limit.
    """

    sample_rate_hz: int
    feature_bins: int
    frames_per_second: float
    max_duration_s: float | None

    def __call__(self, waveforms: Waveforms, *, full_context: bool = False) -> tuple[Tensor, Tensor]:
        """Compute the features of some clips.

        Args:
            waveforms: One (S,) float32 array per clip, at `sample_rate_hz`, at least one sample each.
            full_context: Pad to the model's whole window instead of the longest clip, where there is a window.

        Returns:
            Features (B, T, F) float32 and the number of valid frames (B,) int64.

        Raises:
            AudioError: A clip has no samples (`no_samples`) or is longer than `max_duration_s` (`too_long`).
        """
        ...

    def state(self) -> dict[str, Any]:
        """The settings in JSON form, with the name in the registry as `kind`; `from_state` builds an equal frontend."""
        ...


@runtime_checkable
class ExtractorFrontend(Frontend, Protocol):
    """A frontend that stands for a feature extractor of `transformers`.

    Attributes:
        extractor: Name of its class.
    """

    extractor: str

    @classmethod
    def of_extractor(cls, extractor: Any) -> Self:
        """The frontend whose features equal those of such an extractor."""
        ...


class LogMel:
    """Whisper's log-mel spectrogram at the clips' own length.

    The features of a clip are exactly the first frames of what `WhisperFeatureExtractor` computes for it padded to
    the whole window: silence is added after the clip before the transform, so nothing is mirrored at its end, and the
    clip's floor is taken from its maximum over every frame that hears it. Frames after a clip hold that floor, which
    is what silence gives there.

    Args:
        feature_bins: Mel bands; Whisper has 80 or 128.
        window_s: Seconds of the model's whole window.
        sample_rate_hz: Rate of the waveforms.
        transform_samples: Samples of one transform.
        hop_samples: Samples between frames.

    Source: Radford et al. 2022, section 2.2; `transformers` WhisperFeatureExtractor.
    """

    # Frames of silence after the longest clip: the two convolutions of Whisper's stem (kernel 3) reach two frames
    # beyond the last valid one, so their zero padding never touches speech.
    margin_frames = 4
    extractor = "WhisperFeatureExtractor"

    def __init__(
        self,
        feature_bins: int = 80,
        *,
        window_s: float = 30.0,
        sample_rate_hz: int = 16_000,
        transform_samples: int = 400,
        hop_samples: int = 160,
    ) -> None:
        self.feature_bins = feature_bins
        self.sample_rate_hz = sample_rate_hz
        self.max_duration_s: float | None = window_s
        self.frames_per_second = sample_rate_hz / hop_samples
        self._window_s = window_s
        self._transform = transform_samples
        self._hop = hop_samples
        self._max_samples = round(window_s * sample_rate_hz)
        self._window = torch.hann_window(transform_samples)
        filters_FN = slaney_filters(feature_bins, transform_samples, sample_rate_hz)
        self._filters_NF = torch.from_numpy(filters_FN.T.astype(np.float32)).contiguous()

    @classmethod
    def of_extractor(cls, extractor: Any) -> Self:
        """See `ExtractorFrontend`."""
        return cls(
            extractor.feature_size,
            window_s=extractor.n_samples / extractor.sampling_rate,
            sample_rate_hz=extractor.sampling_rate,
            transform_samples=extractor.n_fft,
            hop_samples=extractor.hop_length,
        )

    def __call__(self, waveforms: Waveforms, *, full_context: bool = False) -> tuple[Tensor, Tensor]:
        """See `Frontend`. Without `full_context`, T is the longest clip rounded up to even, plus four frames."""
        sizes = check_waveforms(waveforms, self.sample_rate_hz, max_samples=self._max_samples)
        frames = [math.ceil(size / self._hop) for size in sizes]
        window_frames = self._max_samples // self._hop
        own_frames = min(max(frames) + max(frames) % 2 + self.margin_frames, window_frames)
        needed = max(max(sizes) + self._transform, own_frames * self._hop)
        padded = min(math.ceil(needed / self._hop) * self._hop, self._max_samples)
        power_BTN = self._power(pad_waveforms(waveforms, padded))
        features_BTF = (power_BTN @ self._filters_NF).clamp_min_(1e-10).log10_()
        floor_B11 = (features_BTF.amax(dim=(1, 2), keepdim=True) - 8.0).clamp_min_(-10.0)
        features_BTF = torch.maximum(features_BTF, floor_B11)[:, : window_frames if full_context else own_frames]
        missing = window_frames - features_BTF.shape[1]
        if full_context and missing > 0:
            silence_BTF = floor_B11.expand(-1, missing, self.feature_bins)
            features_BTF = torch.cat([features_BTF, silence_BTF], dim=1)
        return (features_BTF + 4.0) / 4.0, torch.tensor(frames, dtype=torch.int64)

    def _power(self, waveforms_BS: Tensor) -> Tensor:
        """Power spectrum (B, T, N); the last frame is dropped, as Whisper does."""
        spectrum_BNT = torch.stft(
            waveforms_BS, self._transform, self._hop, window=self._window, center=True, return_complex=True
        )
        parts_BTN2 = torch.view_as_real(spectrum_BNT[..., :-1].transpose(1, 2))
        return parts_BTN2.square().sum(dim=-1)

    def state(self) -> dict[str, Any]:
        """See `Frontend`."""
        return {
            "kind": "log_mel",
            "feature_bins": self.feature_bins,
            "window_s": self._window_s,
            "sample_rate_hz": self.sample_rate_hz,
            "transform_samples": self._transform,
            "hop_samples": self._hop,
        }


class FilterBank:
    """Kaldi's log mel filter bank, as the audio spectrogram transformer takes it.

    Frames lie wholly inside the clip (25 ms, every 10 ms), lose their mean, are pre-emphasised and windowed; a clip
    shorter than one frame is padded with silence to one. Normalised to `(x - mean) / (2 std)` where both are given.

    Args:
        feature_bins: Mel bands.
        sample_rate_hz: Rate of the waveforms.
        max_frames: Frames of the model's whole window; None where it has none.
        mean: Mean of the pretraining data; None leaves the features as they are.
        std: Standard deviation of the pretraining data.

    Source: Gong et al. 2021 (AST); `transformers` ASTFeatureExtractor.
    """

    extractor = "ASTFeatureExtractor"

    def __init__(
        self,
        feature_bins: int = 128,
        *,
        sample_rate_hz: int = 16_000,
        max_frames: int | None = 1024,
        mean: float | None = -4.2677393,
        std: float | None = 4.5689974,
    ) -> None:
        if (mean is None) != (std is None):
            raise ValueError(f"mean and std belong together; found mean={mean}, std={std}. Give both or neither.")
        self.feature_bins = feature_bins
        self.sample_rate_hz = sample_rate_hz
        self._frame = round(0.025 * sample_rate_hz)
        self._hop = round(0.010 * sample_rate_hz)
        self._transform = 2 ** math.ceil(math.log2(self._frame))
        self.frames_per_second = sample_rate_hz / self._hop
        self._max_frames = max_frames
        longest = None if max_frames is None else (max_frames - 1) * self._hop + self._frame
        self._max_samples = longest
        self.max_duration_s: float | None = None if longest is None else longest / sample_rate_hz
        self._mean, self._std = mean, std
        self._window = torch.hann_window(self._frame, periodic=False, dtype=torch.float64)
        self._filters_NF = torch.from_numpy(kaldi_filters(feature_bins, self._transform, sample_rate_hz).T).contiguous()

    @classmethod
    def of_extractor(cls, extractor: Any) -> Self:
        """See `ExtractorFrontend`."""
        return cls(
            extractor.num_mel_bins,
            sample_rate_hz=extractor.sampling_rate,
            max_frames=extractor.max_length,
            mean=extractor.mean if extractor.do_normalize else None,
            std=extractor.std if extractor.do_normalize else None,
        )

    def __call__(self, waveforms: Waveforms, *, full_context: bool = False) -> tuple[Tensor, Tensor]:
        """See `Frontend`. Frames after a clip hold what a feature of 0 becomes."""
        sizes = check_waveforms(waveforms, self.sample_rate_hz, max_samples=self._max_samples)
        sizes = [max(size, self._frame) for size in sizes]
        lengths_B = torch.tensor([1 + (size - self._frame) // self._hop for size in sizes], dtype=torch.int64)
        features_BTF = self._log_bands(pad_waveforms(waveforms, max(sizes)))
        valid_BT = valid_frames(lengths_B, features_BTF.shape[1])
        features_BTF = features_BTF.masked_fill(~valid_BT.unsqueeze(-1), 0.0)
        if full_context and self._max_frames is not None:
            missing = self._max_frames - features_BTF.shape[1]
            features_BTF = torch.nn.functional.pad(features_BTF, (0, 0, 0, missing))
        if self._mean is not None and self._std is not None:
            features_BTF = (features_BTF - self._mean) / (2 * self._std)
        return features_BTF.float(), lengths_B

    @property
    def silence(self) -> float:
        """What frames after a clip hold."""
        return 0.0 if self._mean is None or self._std is None else -self._mean / (2 * self._std)

    def _log_bands(self, waveforms_BS: Tensor) -> Tensor:
        """Log energy in each band (B, T, F) float64."""
        frames_BTS = waveforms_BS.double().unfold(1, self._frame, self._hop)
        frames_BTS = frames_BTS - frames_BTS.mean(dim=-1, keepdim=True)
        before_BTS = torch.cat([frames_BTS[..., :1], frames_BTS[..., :-1]], dim=-1)
        spectrum_BTN = torch.fft.rfft((frames_BTS - 0.97 * before_BTS) * self._window, self._transform)
        power_BTN = torch.view_as_real(spectrum_BTN).square().sum(dim=-1)
        return (power_BTN @ self._filters_NF).clamp_min(float(np.finfo(np.float32).eps)).log()

    def state(self) -> dict[str, Any]:
        """See `Frontend`."""
        return {
            "kind": "filter_bank",
            "feature_bins": self.feature_bins,
            "sample_rate_hz": self.sample_rate_hz,
            "max_frames": self._max_frames,
            "mean": self._mean,
            "std": self._std,
        }


class Mfcc:
    """Mel-frequency cepstral coefficients: the orthonormal DCT-II of the log filter bank.

    Args:
        coefficients: Coefficients kept, from the zeroth.
        bands: Mel bands of the filter bank.
        sample_rate_hz: Rate of the waveforms.

    Source: Davis and Mermelstein 1980.
    """

    max_duration_s: float | None = None

    def __init__(self, coefficients: int = 13, *, bands: int = 40, sample_rate_hz: int = 16_000) -> None:
        if not 1 <= coefficients <= bands:
            raise ValueError(f"coefficients must be 1 to the number of bands ({bands}), got {coefficients}.")
        self._bank = FilterBank(bands, sample_rate_hz=sample_rate_hz, max_frames=None, mean=None, std=None)
        self.feature_bins = coefficients
        self.sample_rate_hz = sample_rate_hz
        self.frames_per_second = self._bank.frames_per_second
        self._bands = bands
        angles = math.pi / bands * np.outer(np.arange(bands) + 0.5, np.arange(coefficients))
        scale = np.full(coefficients, math.sqrt(2.0 / bands))
        scale[0] = math.sqrt(1.0 / bands)
        self._transform_FC = torch.from_numpy((np.cos(angles) * scale).astype(np.float32))

    def __call__(self, waveforms: Waveforms, *, full_context: bool = False) -> tuple[Tensor, Tensor]:
        """See `Frontend`. There is no window; frames after a clip are 0."""
        features_BTF, lengths_B = self._bank(waveforms)
        return features_BTF @ self._transform_FC, lengths_B

    def state(self) -> dict[str, Any]:
        """See `Frontend`."""
        return {
            "kind": "mfcc",
            "coefficients": self.feature_bins,
            "bands": self._bands,
            "sample_rate_hz": self.sample_rate_hz,
        }


class RawWaveform:
    """The samples themselves as (B, S, 1), each clip at zero mean and unit variance, as wav2vec2 takes them.

    A clip shorter than the 25 ms that its convolutions need for one position is padded with silence to that.

    Args:
        sample_rate_hz: Rate of the waveforms.
        normalize: Whether each clip is brought to zero mean and unit variance over its own samples.
    """

    extractor = "Wav2Vec2FeatureExtractor"
    feature_bins = 1
    max_duration_s: float | None = None

    def __init__(self, *, sample_rate_hz: int = 16_000, normalize: bool = True) -> None:
        self.sample_rate_hz = sample_rate_hz
        self.frames_per_second = float(sample_rate_hz)
        self._shortest = round(0.025 * sample_rate_hz)
        self._normalize = normalize

    @classmethod
    def of_extractor(cls, extractor: Any) -> Self:
        """See `ExtractorFrontend`."""
        return cls(sample_rate_hz=extractor.sampling_rate, normalize=extractor.do_normalize)

    def __call__(self, waveforms: Waveforms, *, full_context: bool = False) -> tuple[Tensor, Tensor]:
        """See `Frontend`. There is no window; samples after a clip are 0."""
        sizes = check_waveforms(waveforms, self.sample_rate_hz, max_samples=None)
        if self._normalize:
            waveforms = [
                ((wave - wave.mean(dtype=np.float64)) / np.sqrt(wave.var(dtype=np.float64) + 1e-7)).astype(np.float32)
                for wave in waveforms
            ]
        sizes = [max(size, self._shortest) for size in sizes]
        return pad_waveforms(waveforms, max(sizes)).unsqueeze(-1), torch.tensor(sizes, dtype=torch.int64)

    def state(self) -> dict[str, Any]:
        """See `Frontend`."""
        return {"kind": "raw_waveform", "sample_rate_hz": self.sample_rate_hz, "normalize": self._normalize}


class Normalized:
    """Another frontend's features, normalised.

    Args:
        frontend: Makes the features.
        normalizer: Brings them to zero mean and unit variance.
    """

    def __init__(self, frontend: Frontend, normalizer: Normalizer) -> None:
        self._frontend, self._normalizer = frontend, normalizer
        self.sample_rate_hz = frontend.sample_rate_hz
        self.feature_bins = frontend.feature_bins
        self.frames_per_second = frontend.frames_per_second
        self.max_duration_s = frontend.max_duration_s

    @classmethod
    def from_state(cls, frontend: Mapping[str, Any], normalizer: Mapping[str, Any]) -> Self:
        """From the two states."""
        return cls(from_state(frontend), Normalizer.from_state(normalizer))

    def __call__(self, waveforms: Waveforms, *, full_context: bool = False) -> tuple[Tensor, Tensor]:
        """See `Frontend`. Frames after a clip are 0."""
        features_BTF, lengths_B = self._frontend(waveforms, full_context=full_context)
        return self._normalizer(features_BTF, lengths_B), lengths_B

    def state(self) -> dict[str, Any]:
        """See `Frontend`."""
        return {"kind": "normalized", "frontend": self._frontend.state(), "normalizer": self._normalizer.state()}


def from_state(state: Mapping[str, Any]) -> Frontend:
    """Build the frontend that `state()` described.

    Raises:
        ConfigError: The kind is not known.
        ModelError: A setting is not known.
    """
    settings = dict(state)
    kind = str(settings.pop("kind", None))
    found = resolve("frontends", kind)
    try:
        frontend: Frontend = getattr(found, "from_state", found)(**settings)
    except TypeError as error:
        raise ModelError(
            f"the frontend {kind} cannot be built from its settings: {first_line(error)}. Save the model again."
        ) from error
    return frontend


def from_feature_extractor(extractor: Any) -> Frontend:
    """Build the frontend equal to a `transformers` feature extractor.

    Args:
        extractor: Of a class that a frontend of the registry names as its `extractor`.

    Raises:
        ModelError: The extractor is of another class, or adds random noise (`dither`), which would make a clip's
            features differ from call to call.
    """
    if getattr(extractor, "dither", 0.0):
        raise ModelError(
            f"the feature extractor adds noise (dither={extractor.dither}), so no clip would give the same "
            "features twice. Set `dither` to 0.0 in preprocessor_config.json."
        )
    kinds = [resolve("frontends", name) for name in in_order("frontends")]
    made = {kind.extractor: kind for kind in kinds if getattr(kind, "extractor", None)}
    name = type(extractor).__name__
    if name not in made:
        raise ModelError(
            f"no frontend for the feature extractor {name}; known: {', '.join(made)}. "
            "Use a checkpoint with one of these, or add a frontend (docs/how-to/add-a-model-family.md)."
        )
    try:
        frontend: Frontend = made[name].of_extractor(extractor)
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:  # no class checks its settings
        raise ModelError(
            f"the feature extractor {name} has a setting that it cannot have: {first_line(error)}. "
            "Copy the preprocessor_config.json or processor_config.json of the model again."
        ) from error
    return frontend
