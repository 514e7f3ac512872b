"""Log-probabilities of clips from a CTC model, frame by frame, with the time of each frame.

A clip longer than `WINDOW_S` is computed in windows, so that memory grows with its length only by the
log-probabilities. Each window has a core and `CONTEXT_S` on both sides; the frames of the context are dropped, and the
cores join without a gap. Windows begin at whole frames, so a frame covers the same samples as in the whole clip.

Shape letters: B clips, T frames, V symbols with the blank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sonotune.alignment.borders import HOP_S, fine_energy_db
from sonotune.alignment.placing import clip_finding
from sonotune.data.windows import WINDOW_SLACK_S
from sonotune.errors import ModelError, out_of_memory
from sonotune.features.batching import Batch, ClipBatches, batch_loader, plan_batches
from sonotune.models.base import LoadedModel
from sonotune.models.losses import FrameOutputs
from sonotune.models.modes import inference
from sonotune.types import Clip, Finding

WINDOW_S: Final = 30.0
CONTEXT_S: Final = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Emissions:
    """What a CTC model says of one clip.

    Attributes:
        clip: The clip.
        log_probs: Natural logarithms of probabilities (T, V) float32.
        frame_s: Seconds from one frame to the next.
        offset_s: Where frame 0 begins, in seconds from the start of the clip; frame t is the time from
            `offset_s + t * frame_s` to `offset_s + (t + 1) * frame_s`, in the middle of what its window reads.
        energy_db: Of the waveform (E,) float32 (`borders.fine_energy_db`).
    """

    clip: Clip
    log_probs: NDArray[np.float32]
    frame_s: float
    offset_s: float
    energy_db: NDArray[np.float32]

    def times(self, frames: NDArray[np.int64]) -> NDArray[np.float64]:
        """Where frames begin, in seconds within the clip."""
        times: NDArray[np.float64] = (self.offset_s + frames * self.frame_s).clip(0.0, self.clip.duration_s)
        return times


def frame_times(loaded: LoadedModel) -> tuple[float, float]:
    """`frame_s` and `offset_s` of a CTC model (`Emissions`).

    The samples that wav2vec 2.0's convolutions read for frame t begin at t strides; they are not padded. Parakeet's
    spectrogram and its convolutions are padded to both sides, so the samples of frame t lie around t strides.

    Raises:
        ModelError: The model is not of the family `ctc`.
    """
    if loaded.family.name != "ctc":
        raise ModelError(
            f"{loaded.checkpoint} cannot give log-probabilities of frames: its family is {loaded.family.name}; allowed "
            "is ctc. Name a CTC model, such as assets:ctc-nano."
        )
    config, rate_hz = loaded.module.config, loaded.frontend.sample_rate_hz
    if config.model_type == "parakeet_ctc":
        frame_s = config.encoder_config.subsampling_factor / loaded.frontend.frames_per_second
        return frame_s, -frame_s / 2
    reach, stride = 1, 1
    for kernel, step in zip(config.conv_kernel, config.conv_stride, strict=True):
        reach, stride = reach + (kernel - 1) * stride, stride * step
    return stride / rate_hz, (reach - stride) / 2 / rate_hz


def clip_emissions(
    loaded: LoadedModel, clips: Sequence[Clip], *, batch_seconds: float = 240.0, max_clips: int = 32
) -> Iterator[list[Emissions | Finding]]:
    """Compute clips in batches of similar length, without gradients.

    Args:
        loaded: A model of the family `ctc`; which of its parts are in training mode is restored after each batch.
        clips: The clips.
        batch_seconds: Padded seconds of one batch.
        max_clips: Most clips in a batch.

    Yields:
        What there is of the clips of one batch, the longest first; long clips follow one by one. A clip that cannot be
        read, or for which the model gives NaN, is a finding.

    Raises:
        ModelError: The model is not of the family `ctc`.
    """
    frame_s, offset_s = frame_times(loaded)
    short = [clip for clip in clips if clip.duration_s <= WINDOW_S + WINDOW_SLACK_S]
    plan = plan_batches(
        [clip.duration_s for clip in short],
        max_seconds=batch_seconds,
        max_clips=max_clips,
        seed=0,
        epoch=0,
        shuffle=False,
        jitter_s=0.0,
    )

    def made(one: _Computed) -> Emissions | Finding:
        if not np.isfinite(one.log_probs).all():
            return _not_finite(loaded, one.clip)
        return Emissions(
            clip=one.clip, log_probs=one.log_probs, frame_s=frame_s, offset_s=offset_s, energy_db=one.energy_db
        )

    for computed, findings in _compute(loaded, short, plan):
        yield [*map(made, computed), *findings]
    for clip in clips:
        if clip.duration_s > WINDOW_S + WINDOW_SLACK_S:
            found = _by_windows(loaded, clip, frame_s, batch_seconds=batch_seconds, max_clips=max_clips)
            yield [found if isinstance(found, Finding) else made(found)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Computed:
    """A clip or a window of one, with its log-probabilities (T, V) and energies (E,)."""

    clip: Clip
    log_probs: NDArray[np.float32]
    energy_db: NDArray[np.float32]


def _by_windows(
    loaded: LoadedModel, clip: Clip, frame_s: float, *, batch_seconds: float, max_clips: int
) -> _Computed | Finding:
    """A long clip, core by core."""
    context = round(CONTEXT_S / frame_s)
    core = round(WINDOW_S / frame_s) - 2 * context
    pieces: list[Clip] = []
    dropped: list[int] = []
    first, end_s = 0, 0.0
    while end_s < clip.duration_s:
        start_s = max(0, first - context) * frame_s
        end_s = min(clip.duration_s, (first + core + context) * frame_s)
        name = f"{clip.id}#{len(pieces)}"
        pieces.append(replace(clip, id=name, start_s=clip.start_s + start_s, duration_s=end_s - start_s))
        dropped.append(min(first, context))
        first += core
    size = max(1, min(max_clips, int(batch_seconds // WINDOW_S)))
    plan = [tuple(range(start, min(start + size, len(pieces)))) for start in range(0, len(pieces), size)]
    cores: list[NDArray[np.float32]] = []
    energies: list[NDArray[np.float32]] = []
    hops = frame_s / HOP_S
    for computed, findings in _compute(loaded, pieces, plan):
        if findings:
            return replace(findings[0], clip_ids=(clip.id,))
        for one in computed:
            skip, is_last = dropped[len(cores)], len(cores) == len(pieces) - 1
            cores.append(one.log_probs[skip : None if is_last else skip + core])
            start, stop = round(skip * hops), round((skip + core) * hops)
            energies.append(one.energy_db[start : None if is_last else stop])
    return _Computed(clip=clip, log_probs=np.concatenate(cores), energy_db=np.concatenate(energies))


class _Energies:
    """Takes the energy of each waveform that is read, and leaves the waveform as it is."""

    def __init__(self) -> None:
        self.by_id: dict[str, NDArray[np.float32]] = {}

    def __call__(
        self, waveform_S: NDArray[np.float32], sample_rate_hz: int, *, seed: int, epoch: int, clip_id: str
    ) -> NDArray[np.float32]:
        """See `features.batching.WaveformTransform`."""
        self.by_id[clip_id] = fine_energy_db(waveform_S, sample_rate_hz)
        return waveform_S


def _compute(
    loaded: LoadedModel, clips: Sequence[Clip], plan: Sequence[tuple[int, ...]]
) -> Iterator[tuple[list[_Computed], tuple[Finding, ...]]]:
    """Each batch: what was computed, and the findings on the other clips."""
    for places in plan:
        members = [clips[place] for place in places]
        targets = [np.zeros(0, dtype=np.int64)] * len(members)
        energies = _Energies()
        [batch] = batch_loader(
            ClipBatches(
                members,
                targets,
                loaded.frontend,
                batches=[tuple(range(len(members)))],
                seed=0,
                epoch=0,
                waveform_augmenter=energies,
                context=loaded.context,
            )
        )
        with inference(loaded.module):
            scores = _forward(loaded, batch) if batch.clips else []
        made = zip(batch.clips, scores, strict=True)
        yield (
            [_Computed(clip=clip, log_probs=scores_TV, energy_db=energies.by_id[clip.id]) for clip, scores_TV in made],
            batch.findings,
        )


def _forward(loaded: LoadedModel, batch: Batch) -> list[NDArray[np.float32]]:
    try:
        family: Any = loaded.family
        outputs: FrameOutputs = family.forward(loaded, batch.to(loaded.device))
        scores_BTV = outputs.log_probs.float().cpu().numpy()
        lengths = outputs.lengths.tolist()
        return [scores_TV[:length].copy() for scores_TV, length in zip(scores_BTV, lengths, strict=True)]
    except Exception as error:
        if len(batch.clips) == 1 or not out_of_memory(error):
            raise
    # Outside the handler, where the traceback no longer holds what was computed.
    return [scores_TV for half in batch.split(2) for scores_TV in _forward(loaded, half)]


def _not_finite(loaded: LoadedModel, clip: Clip) -> Finding:
    return clip_finding(
        clip, "align.not_finite", f"makes {loaded.checkpoint} compute NaN or infinity. Leave it out, or take fp32."
    )
