"""Batches: which clips go together, and their features and targets as tensors.

The plan of an epoch is a pure function of durations, seed and epoch, and every draw belongs to one clip, so a batch is
the same whichever process makes it and wherever a run was taken up again.

Shape letters: B clips, T frames, F feature bins, U target tokens.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from sonotune.audio.io import check_samples, read
from sonotune.data.windows import WINDOW_SLACK_S
from sonotune.errors import AudioError
from sonotune.features.frontend import Frontend
from sonotune.features.mixup import Mix, MixupSettings, draw_mix, mix_features, mix_waveforms
from sonotune.features.specaugment import SpecAugmentSettings, spec_augment
from sonotune.features.workers import Crew
from sonotune.runs import generator
from sonotune.types import Clip, Context, Finding

logger = logging.getLogger(__name__)

IGNORED_TARGET = -100
_JITTER_SHARE = 0.2


class WaveformTransform(Protocol):
    """What changes waveforms: `sonotune.audio.augment.WaveformAugmenter` or anything called like it."""

    def __call__(
        self, waveform_S: NDArray[np.float32], sample_rate_hz: int, *, seed: int, epoch: int, clip_id: str
    ) -> NDArray[np.float32]:
        """Changed waveform; every draw from `runs.generator(seed, epoch, clip_id, ...)`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some clips as a model takes them.

    Attributes:
        inputs: Features (B, T, F) float32.
        input_lengths: Valid frames (B,) int64.
        targets: Token or class ids (B, U) int64, -100 after each clip's own.
        target_lengths: Ids of each clip (B,) int64.
        clips: The clips, in the order of the rows.
        context: Of the model's window: `full` says that T is the whole of it.
        findings: Clips that were planned here and could not be used.
        frames_per_second: Rate of the frames.
        mixed_targets: Targets of the clip that is mixed into each (B, U), where Mixup is on.
        mixed_shares: Share of that clip (B,) float32.
        digests: Digest of each clip's samples as the frontend got them; empty where the batch was made of features.
        epoch: Pass over the clips that it belongs to, from 0.
    """

    inputs: Tensor
    input_lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    clips: tuple[Clip, ...]
    context: Context
    findings: tuple[Finding, ...] = ()
    frames_per_second: float = 100.0
    mixed_targets: Tensor | None = None
    mixed_shares: Tensor | None = None
    digests: tuple[str, ...] = ()
    epoch: int = 0

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on a device."""
        return replace(
            self,
            **{name: getattr(self, name).to(device, non_blocking=True) for name in self._tensors()},
        )

    def _tensors(self) -> list[str]:
        """Names of the fields that hold a tensor with a row a clip."""
        return [name for name in _TENSORS if getattr(self, name) is not None]

    @property
    def draw_keys(self) -> tuple[str, ...]:
        """What seeds the draws of a decoder for each clip: what is heard, and neither its name nor its batch.

        The samples of a clip are the same to the bit in every batch. Features need not be: how a matrix product is
        summed may depend on its size. They stand in only where no samples were given.
        """
        if self.digests:
            return self.digests
        rows = zip(self.inputs.cpu(), self.input_lengths.tolist(), strict=True)
        return tuple(_digest(row_TF[:length].float().numpy()) for row_TF, length in rows)

    @property
    def seconds(self) -> float:
        """Seconds of audio, padding left out."""
        return float(self.input_lengths.sum()) / self.frames_per_second

    @property
    def padded_seconds(self) -> float:
        """Seconds that are computed, padding included."""
        return self.inputs.shape[0] * self.inputs.shape[1] / self.frames_per_second

    @property
    def padding_share(self) -> float:
        """Share of the computed frames that are padding; 0 for a batch without clips."""
        return 1.0 - self.seconds / self.padded_seconds if self.padded_seconds else 0.0

    def split(self, parts: int) -> list[Batch]:
        """Cut into at most `parts` batches of neighbouring rows, as equal as can be.

        The frames stay as they are, so the parts compute what the whole would. Findings go with the first part.

        Raises:
            ValueError: `parts` is below 1.
        """
        if parts < 1:
            raise ValueError(f"a batch is split into 1 part or more, got {parts}.")
        shares = np.array_split(np.arange(len(self.clips)), max(1, min(parts, len(self.clips))))
        cuts = [self.rows(share.tolist()) for share in shares]
        return [replace(cuts[0], findings=self.findings), *cuts[1:]]

    def rows(self, chosen: Sequence[int]) -> Batch:
        """Some rows, in the order given; the frames stay as they are, and findings stay behind."""
        return replace(
            self,
            clips=tuple(self.clips[row] for row in chosen),
            digests=tuple(self.digests[row] for row in chosen) if self.digests else (),
            findings=(),
            **{name: getattr(self, name)[list(chosen)] for name in self._tensors()},
        )


_TENSORS = ("inputs", "input_lengths", "targets", "target_lengths", "mixed_targets", "mixed_shares")


def plan_batches(
    durations_s: Sequence[float],
    *,
    max_seconds: float,
    max_clips: int,
    seed: int,
    epoch: int,
    shuffle: bool = True,
    jitter_s: float = 0.5,
) -> list[tuple[int, ...]]:
    """Put clips of like length together; a pure function of its arguments.

    Args:
        durations_s: Length of each clip.
        max_seconds: Most padded seconds of a batch (longest clip times number of clips). A clip longer than this is
            a batch of its own.
        max_clips: Most clips in a batch.
        seed: The run's seed.
        epoch: Epoch, from 0.
        shuffle: Whether the batches come in random order; otherwise the longest first, so that a lack of memory
            shows at once.
        jitter_s: Width of the random shift of each length before sorting, so that a clip meets others in every
            epoch; at most a fifth of the clip's own length, so that short clips are not padded to double. 0 sorts
            exactly.

    Returns:
        Indices into `durations_s`, each exactly once.

    Raises:
        ValueError: A duration is negative or not finite, or a limit or the jitter is out of range.
    """
    lengths_s = np.asarray(durations_s, dtype=np.float64).reshape(-1)
    bad = np.flatnonzero(~(np.isfinite(lengths_s) & (lengths_s >= 0)))
    if bad.size:
        raise ValueError(f"durations must be finite and 0 or more; clip {bad[0]} has {lengths_s[bad[0]]}.")
    if not max_seconds > 0 or max_clips < 1 or not jitter_s >= 0:
        raise ValueError(
            f"max_seconds must be above 0, max_clips 1 or more and jitter_s 0 or more; "
            f"got {max_seconds}, {max_clips} and {jitter_s}."
        )
    rng = generator(seed, epoch, "order")
    width_s = np.minimum(jitter_s, _JITTER_SHARE * lengths_s)
    keys = lengths_s + width_s * (rng.random(lengths_s.size) - 0.5)
    batches: list[tuple[int, ...]] = []
    current: list[int] = []
    longest_s = 0.0
    for index in np.argsort(-keys, kind="stable").tolist():
        wider_s = max(longest_s, float(lengths_s[index]))
        if current and (len(current) >= max_clips or wider_s * (len(current) + 1) > max_seconds):
            batches.append(tuple(current))
            current, wider_s = [], float(lengths_s[index])
        current.append(index)
        longest_s = wider_s
    if current:
        batches.append(tuple(current))
    return [batches[place] for place in rng.permutation(len(batches))] if shuffle else batches


def padding_share(durations_s: Sequence[float], batches: Sequence[Sequence[int]]) -> float:
    """Share of the computed seconds that are padding, if each batch is padded to its longest clip."""
    heard_s = sum(durations_s[index] for batch in batches for index in batch)
    computed_s = sum(max(durations_s[index] for index in batch) * len(batch) for batch in batches if batch)
    return 1.0 - heard_s / computed_s if computed_s else 0.0


class ClipBatches(Dataset[Batch]):
    """The planned batches of one epoch, made when asked for.

    A clip that cannot be used is left out of its batch and becomes one of the batch's findings, with the check
    `audio.<reason>`. A batch may come out without clips; the caller passes over it.

    Args:
        clips: The clips of the split.
        targets: Ids of each clip, in the same order.
        frontend: Waveforms -> features.
        batches: Indices into `clips`, as `plan_batches` gives them.
        seed: The run's seed.
        epoch: Epoch, from 0.
        waveform_augmenter: Changes each waveform, or None.
        spec_augment: Masks and warps features, or None.
        context: Of the batches.
        full_context_share: Share of the batches that are padded to the model's whole window instead.
        mixup: Lays clips of a batch over each other, or None.

    Raises:
        ValueError: Clips and targets differ in number, or the share is not from 0 to 1.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        targets: Sequence[NDArray[np.int64]],
        frontend: Frontend,
        *,
        batches: Sequence[tuple[int, ...]],
        seed: int,
        epoch: int,
        waveform_augmenter: WaveformTransform | None = None,
        spec_augment: SpecAugmentSettings | None = None,
        context: Context,
        full_context_share: float = 0.0,
        mixup: MixupSettings | None = None,
    ) -> None:
        if len(clips) != len(targets):
            raise ValueError(f"each clip needs its targets; got {len(clips)} clips and {len(targets)} targets.")
        if not 0.0 <= full_context_share <= 1.0:
            raise ValueError(f"full_context_share must be from 0 to 1, got {full_context_share}.")
        self._clips, self._targets, self._frontend = clips, targets, frontend
        self._batches = list(batches)
        self._seed, self._epoch = seed, epoch
        self._augmenter, self._masks = waveform_augmenter, spec_augment
        self._context: Context = context
        self._full_context_share = full_context_share
        self._mixup = mixup

    def __len__(self) -> int:
        return len(self._batches)

    def clip_ids(self, index: int) -> tuple[str, ...]:
        """Ids of the clips planned for one batch."""
        return tuple(self._clips[clip].id for clip in self._batches[index])

    def __getitem__(self, index: int) -> Batch:
        usable: list[int] = []
        waveforms: list[NDArray[np.float32]] = []
        findings: list[Finding] = []
        for place in self._batches[index]:
            try:
                waveforms.append(self._waveform(self._clips[place]))
                usable.append(place)
            except AudioError as error:
                findings.append(_finding(self._clips[place], error))
        context = self._context_of(index)
        clips = tuple(self._clips[place] for place in usable)
        mix = self._mix(clips)
        if mix is not None and self._mixup and self._mixup.domain == "waveform":
            waveforms = mix_waveforms(waveforms, mix)
        if waveforms:
            features_BTF, lengths_B = self._frontend(waveforms, full_context=context == "full")
        else:
            features_BTF = torch.zeros(0, 0, self._frontend.feature_bins)
            lengths_B = torch.zeros(0, dtype=torch.int64)
        if mix is not None and self._mixup and self._mixup.domain == "features":
            features_BTF = mix_features(features_BTF, lengths_B, mix)
        if self._masks is not None:
            ids = [clip.id for clip in clips]
            features_BTF = spec_augment(
                features_BTF, lengths_B, clip_ids=ids, seed=self._seed, epoch=self._epoch, settings=self._masks
            )
        targets_BU, target_lengths_B = pad_targets([self._targets[place] for place in usable])
        return Batch(
            inputs=features_BTF,
            input_lengths=lengths_B,
            targets=targets_BU,
            target_lengths=target_lengths_B,
            clips=clips,
            context=context,
            findings=tuple(findings),
            frames_per_second=self._frontend.frames_per_second,
            mixed_targets=None if mix is None else targets_BU[list(mix.partners)],
            mixed_shares=None if mix is None else torch.from_numpy(mix.shares),
            digests=tuple(_digest(waveform) for waveform in waveforms),
            epoch=self._epoch,
        )

    def _mix(self, clips: Sequence[Clip]) -> Mix | None:
        if self._mixup is None or not clips:
            return None
        return draw_mix([clip.id for clip in clips], seed=self._seed, epoch=self._epoch, settings=self._mixup)

    def _context_of(self, index: int) -> Context:
        if not self._batches[index] or self._full_context_share == 0.0:
            return self._context
        draw = generator(self._seed, self._epoch, "full_context", self.clip_ids(index)[0]).random()
        return "full" if draw < self._full_context_share else self._context

    def _waveform(self, clip: Clip) -> NDArray[np.float32]:
        """Read one clip and augment it.

        Raises:
            AudioError: It cannot be read, is longer than the model's window, or its samples are no sound.
        """
        rate_hz, window_s = self._frontend.sample_rate_hz, self._frontend.max_duration_s
        recorded = read(
            clip.path, start_s=clip.start_s, duration_s=clip.duration_s, channel=clip.channel, sample_rate_hz=rate_hz
        )
        limit = recorded.size if window_s is None else round(window_s * rate_hz)
        if recorded.size > limit + WINDOW_SLACK_S * rate_hz:
            raise AudioError(
                "too_long",
                f"clip {clip.id} lasts {recorded.size / rate_hz:.2f} s; the model's window is {window_s:g} s. "
                "Cut it with `start_s` and `duration_s`.",
            )
        waveform = recorded[:limit]
        if self._augmenter is not None:
            changed = self._augmenter(waveform, rate_hz, seed=self._seed, epoch=self._epoch, clip_id=clip.id)
            # Cut short, a clip that was slowed down or padded would stand for words that the model never read.
            waveform = changed if window_s is None or changed.size <= limit else waveform
        if waveform.size == 0:
            raise AudioError("no_samples", f"clip {clip.id} has no samples at {clip.start_s} s. Mend its span.")
        check_samples(waveform, f"clip {clip.id} has", "Leave it out.")
        return np.ascontiguousarray(waveform, dtype=np.float32)


def _digest(values: NDArray[np.float32]) -> str:
    """Number and checksum of some values. Where two clips share one, they share their draws, which harms neither."""
    return f"{values.size}:{zlib.crc32(values.tobytes()):08x}"


def pad_targets(targets: Sequence[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Put ids into one (B, U) tensor, -100 after each clip's own, with their number (B,)."""
    sizes = [len(ids) for ids in targets]
    padded_BU = torch.full((len(targets), max(sizes, default=0)), IGNORED_TARGET, dtype=torch.int64)
    for row, ids in zip(padded_BU, targets, strict=True):
        row[: len(ids)] = torch.from_numpy(np.asarray(ids, dtype=np.int64))
    return padded_BU, torch.tensor(sizes, dtype=torch.int64)


def _finding(clip: Clip, error: AudioError) -> Finding:
    return Finding(
        check=f"audio.{error.reason}",
        severity="error",
        message=str(error),
        clip_ids=(clip.id,),
        path=str(clip.path),
    )


def batch_loader(
    dataset: ClipBatches, crew: Crew | None = None, *, places: Sequence[int] | None = None, timeout_s: float = 120.0
) -> Generator[Batch, None, None]:
    """Go through the batches in order, made ahead of time in other processes.

    The batches do not depend on the number of workers, nor on where a run was taken up, nor on how many processes share
    them. No global random state is used.

    Args:
        dataset: The batches of one epoch.
        crew: Processes that make batches; None or an empty crew makes them in this one.
        places: Which batches, in this order; None takes all.
        timeout_s: How long to wait for one batch.

    Yields:
        The batch of each place.

    Raises:
        ResourceError: A worker died or gave nothing in time; the message names the batch and its clips.
        ValueError: A place or `timeout_s` is out of range.
    """
    places = range(len(dataset)) if places is None else places
    if not all(0 <= place < len(dataset) for place in places) or not timeout_s > 0:
        raise ValueError(
            f"places must be from 0 to {len(dataset) - 1} and timeout_s above 0; got {places} and {timeout_s}."
        )
    if crew is None or crew.workers == 0:
        return _made_here(dataset, places)
    return _made_by(crew, dataset, places, timeout_s)


def _made_here(dataset: ClipBatches, places: Sequence[int]) -> Generator[Batch, None, None]:
    for place in places:
        with _one_thread():
            batch = dataset[place]
        yield batch


def _made_by(crew: Crew, dataset: ClipBatches, places: Sequence[int], timeout_s: float) -> Generator[Batch, None, None]:
    results = crew.results(
        _PackedBatches(dataset),
        places,
        timeout_s=timeout_s,
        describe=lambda index: f"batch {index} ({_some(dataset.clip_ids(index))})",
    )
    with closing(results):
        for packed in results:
            yield packed.unpack()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Workers compute on one thread; more would round matrix products differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _PackedBatches:
    """Makes batches inside a worker."""

    def __init__(self, dataset: ClipBatches) -> None:
        self._dataset = dataset

    def __call__(self, index: int) -> _Packed:
        torch.set_num_threads(1)
        return _Packed(self._dataset[index])


class _Packed:
    """A batch on its way between processes, with arrays for tensors.

    torch would put tensors into shared memory, which a container has 64 MB of unless told otherwise.
    """

    def __init__(self, batch: Batch) -> None:
        self._arrays = {name: getattr(batch, name).numpy() for name in batch._tensors()}
        empty: dict[str, Any] = dict.fromkeys(self._arrays, torch.empty(0))
        self._rest = replace(batch, **empty)

    def unpack(self) -> Batch:
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in self._arrays.items()}
        return replace(self._rest, **tensors)


def _some(ids: Sequence[str], *, most: int = 8) -> str:
    return ", ".join(ids[:most]) + (f" and {len(ids) - most} more" if len(ids) > most else "")
