"""Log-mel features in whole chunks, as Qwen3-ASR takes them.

Shape letters: B clips, S samples, T frames, F feature bins, N frequencies of the transform.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sonotune.features.mel import slaney_filters
from sonotune.features.normalization import valid_frames
from sonotune.features.waveforms import Waveforms, check_waveforms


class ChunkedLogMel:
    """Whisper's log-mel spectrogram of a clip alone, followed by zeros to a whole number of chunks.

    The features of a clip are what `Qwen3ASRFeatureExtractor` gives for it in a call of its own, as the published
    model transcribes: the clip is mirrored at its own end, its floor is taken from its own frames, and 0 follows.
    In a batch that extractor puts silence behind the shorter clips, so there a clip's last frames, and the embedding
    of its last chunk, depend on its neighbours; here they never do. A clip under `min_samples` is padded with
    silence, and that silence counts as speech, as the model was trained.

    Args:
        feature_bins: Mel bands.
        sample_rate_hz: Rate of the waveforms.
        transform_samples: Samples of one transform.
        hop_samples: Samples between frames.
        min_samples: The shortest clip; half a second for the published models.
        chunk_frames: Frames that the encoder's convolutions take at a time.
        max_s: The longest clip. The encoder hears eight seconds at a time, so nothing in the architecture limits it;
            20 minutes is where the authors' package cuts a recording.

    Source: `transformers` Qwen3ASRFeatureExtractor; Qwen team 2026, arXiv:2601.21337.
    """

    extractor = "Qwen3ASRFeatureExtractor"

    def __init__(
        self,
        feature_bins: int = 128,
        *,
        sample_rate_hz: int = 16_000,
        transform_samples: int = 400,
        hop_samples: int = 160,
        min_samples: int = 8000,
        chunk_frames: int = 100,
        max_s: float = 1200.0,
    ) -> None:
        self.feature_bins = feature_bins
        self.sample_rate_hz = sample_rate_hz
        self.frames_per_second = sample_rate_hz / hop_samples
        self.max_duration_s: float | None = max_s
        self._max_samples = round(max_s * sample_rate_hz)
        self._transform, self._hop = transform_samples, hop_samples
        self._min_samples, self._chunk_frames = min_samples, chunk_frames
        self._window = torch.hann_window(transform_samples)
        filters_FN = slaney_filters(feature_bins, transform_samples, sample_rate_hz)
        self._filters_NF = torch.from_numpy(filters_FN.T.astype(np.float32)).contiguous()

    @classmethod
    def of_extractor(cls, extractor: Any) -> Self:
        """See `features.frontend.ExtractorFrontend`."""
        return cls(
            extractor.feature_size,
            sample_rate_hz=extractor.sampling_rate,
            transform_samples=extractor.n_fft,
            hop_samples=extractor.hop_length,
            min_samples=extractor.min_length,
            chunk_frames=2 * extractor.n_window,
        )

    def __call__(self, waveforms: Waveforms, *, full_context: bool = False) -> tuple[Tensor, Tensor]:
        """See `Frontend`. There is no window: T is the longest clip in whole chunks, and frames after a clip are 0."""
        check_waveforms(waveforms, self.sample_rate_hz, max_samples=self._max_samples)
        mirrored = [self._mirrored(waveform) for waveform in waveforms]
        lengths_B = torch.tensor([(len(one) - self._transform) // self._hop for one in mirrored], dtype=torch.int64)
        frames = -(-int(lengths_B.max()) // self._chunk_frames) * self._chunk_frames
        samples_BS = np.zeros((len(mirrored), (frames - 1) * self._hop + self._transform), dtype=np.float32)
        for row, one in zip(samples_BS, mirrored, strict=True):
            used = min(one.size, row.size)
            row[:used] = one[:used]
        features_BTF = (self._power(torch.from_numpy(samples_BS)) @ self._filters_NF).clamp_min_(1e-10).log10_()
        outside_BT1 = ~valid_frames(lengths_B, frames).unsqueeze(-1)
        loudest_B11 = features_BTF.masked_fill(outside_BT1, -torch.inf).amax(dim=(1, 2), keepdim=True)
        features_BTF = (torch.maximum(features_BTF, loudest_B11 - 8.0) + 4.0) / 4.0
        return features_BTF.masked_fill_(outside_BT1, 0.0), lengths_B

    def _mirrored(self, waveform_S: np.ndarray) -> np.ndarray:
        """The clip, padded to the shortest length there may be, with half a transform mirrored at either end."""
        half = self._transform // 2
        missing = max(self._min_samples, self._hop, half + 1) - waveform_S.size
        if missing > 0:
            waveform_S = np.pad(waveform_S, (0, missing))
        return np.pad(waveform_S, half, mode="reflect")

    def _power(self, mirrored_BS: Tensor) -> Tensor:
        """Power spectrum (B, T, N)."""
        spectrum_BNT = torch.stft(
            mirrored_BS, self._transform, self._hop, window=self._window, center=False, return_complex=True
        )
        return torch.view_as_real(spectrum_BNT.transpose(1, 2)).square().sum(dim=-1)

    def state(self) -> dict[str, Any]:
        """See `Frontend`."""
        return {
            "kind": "chunked_log_mel",
            "feature_bins": self.feature_bins,
            "sample_rate_hz": self.sample_rate_hz,
            "transform_samples": self._transform,
            "hop_samples": self._hop,
            "min_samples": self._min_samples,
            "chunk_frames": self._chunk_frames,
            "max_s": self.max_duration_s,
        }
