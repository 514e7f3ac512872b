"""NeMo's log-mel frontend, as Parakeet takes it.

Shape letters: B clips, S samples, T frames, F feature bins.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sonotune.features.mel import slaney_filters
from sonotune.features.normalization import valid_frames
from sonotune.features.waveforms import Waveforms, check_waveforms, pad_waveforms

_LOG_GUARD = 2.0**-24
_STD_GUARD = 1e-5
_SHORTEST_FRAMES = 2  # one frame has no deviation


class NormalizedLogMel:
    """Log-mel features with each band of a clip at zero mean and unit deviation over its own frames.

    Args:
        feature_bins: Mel bands.
        sample_rate_hz: Rate of the waveforms.
        transform_samples: Samples of one transform.
        window_samples: Samples under the window.
        hop_samples: Samples between frames.
        preemphasis: Share of the sample before that is taken off each.

    Source: NVIDIA NeMo AudioToMelSpectrogramPreprocessor; `transformers` ParakeetFeatureExtractor.
    """

    extractor = "ParakeetFeatureExtractor"
    max_duration_s: float | None = None

    def __init__(
        self,
        feature_bins: int = 80,
        *,
        sample_rate_hz: int = 16_000,
        transform_samples: int = 512,
        window_samples: int = 400,
        hop_samples: int = 160,
        preemphasis: float = 0.97,
    ) -> None:
        self.feature_bins = feature_bins
        self.sample_rate_hz = sample_rate_hz
        self.frames_per_second = sample_rate_hz / hop_samples
        self._transform, self._hop, self._preemphasis = transform_samples, hop_samples, preemphasis
        self._window = torch.hann_window(window_samples, periodic=False)
        filters_FN = slaney_filters(feature_bins, transform_samples, sample_rate_hz)
        self._filters_NF = torch.from_numpy(filters_FN.T.astype(np.float32)).contiguous()

    @classmethod
    def of_extractor(cls, extractor: Any) -> Self:
        """See `features.frontend.ExtractorFrontend`."""
        return cls(
            extractor.feature_size,
            sample_rate_hz=extractor.sampling_rate,
            transform_samples=extractor.n_fft,
            window_samples=extractor.win_length,
            hop_samples=extractor.hop_length,
            preemphasis=extractor.preemphasis or 0.0,
        )

    def __call__(self, waveforms: Waveforms, *, full_context: bool = False) -> tuple[Tensor, Tensor]:
        """See `Frontend`. There is no window; frames after a clip are 0, a clip under 20 ms is padded to that."""
        sizes = check_waveforms(waveforms, self.sample_rate_hz, max_samples=None)
        sizes = [max(size, _SHORTEST_FRAMES * self._hop) for size in sizes]
        waveforms_BS = pad_waveforms(waveforms, max(sizes))
        sharpened_BS = waveforms_BS.clone()
        sharpened_BS[:, 1:] -= self._preemphasis * waveforms_BS[:, :-1]
        sizes_B = torch.tensor(sizes, dtype=torch.int64)
        sharpened_BS = sharpened_BS.masked_fill(~valid_frames(sizes_B, sharpened_BS.shape[1]), 0.0)
        lengths_B = sizes_B // self._hop
        bands_BTF = self._bands(sharpened_BS)[:, : int(lengths_B.max())]
        valid_BT1 = valid_frames(lengths_B, bands_BTF.shape[1]).unsqueeze(-1)
        count_B11 = lengths_B[:, None, None]
        mean_B1F = (bands_BTF * valid_BT1).sum(dim=1, keepdim=True) / count_B11
        variance_B1F = ((bands_BTF - mean_B1F).square() * valid_BT1).sum(dim=1, keepdim=True) / (count_B11 - 1)
        return (bands_BTF - mean_B1F) / (variance_B1F.sqrt() + _STD_GUARD) * valid_BT1, lengths_B

    def _bands(self, waveforms_BS: Tensor) -> Tensor:
        spectrum_BNT = torch.stft(
            waveforms_BS,
            self._transform,
            self._hop,
            win_length=len(self._window),
            window=self._window,
            pad_mode="constant",
            return_complex=True,
        )
        power_BTN = torch.view_as_real(spectrum_BNT).square().sum(dim=-1).transpose(1, 2)
        return (power_BTN @ self._filters_NF + _LOG_GUARD).log()

    def state(self) -> dict[str, Any]:
        """See `Frontend`."""
        return {
            "kind": "normalized_log_mel",
            "feature_bins": self.feature_bins,
            "sample_rate_hz": self.sample_rate_hz,
            "transform_samples": self._transform,
            "window_samples": len(self._window),
            "hop_samples": self._hop,
            "preemphasis": self._preemphasis,
        }
