"""How a planned corpus reaches the disk: audio formats, processes that render shards, a manifest for each split."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Final, TypeVar

from sonotune.data.manifest import write_manifest
from sonotune.data.speech_plans import AudioFormat
from sonotune.errors import ResourceError
from sonotune.runs import clear_drafts
from sonotune.types import Clip

_T = TypeVar("_T")

SAMPLE_RATE_HZ: Final = 16000
# Clips are whole hundredths of a second long, so that spans in a manifest are exact.
GRID_SAMPLES: Final = SAMPLE_RATE_HZ // 100
# Suffix of the file, and what `audio.io.write` is told. Opus at this level takes about 24 kbit/s in short files.
AUDIO_FILES: Final[Mapping[AudioFormat, tuple[str, Mapping[str, Any]]]] = {
    "wav": ("wav", {}),
    "flac": ("flac", {}),
    "opus": ("ogg", {"format": "OGG", "subtype": "OPUS", "compression_level": 0.95}),
}


def render_shards(
    render: Callable[[int, Sequence[_T]], list[Clip]],
    shards: Sequence[Sequence[_T]],
    folder: Path,
    *,
    workers: int,
    fresh: bool,
) -> list[Clip]:
    """Render the shards of a plan side by side.

    Args:
        render: Index of a shard and the shard -> its clips, their audio written. Can be pickled.
        shards: The plan, cut into parts.
        folder: What the processes write to, for the message of an error.
        workers: Processes that work at once. One without `fresh` is this process.
        fresh: Whether every shard needs a process of its own, because the renderer keeps a state between clips.

    Returns:
        All clips, in the order of the plan.

    Raises:
        ResourceError: A process died.
    """
    clear_drafts(folder / "audio")
    if workers == 1 and not fresh:
        return [clip for index, shard in enumerate(shards) for clip in render(index, shard)]
    # spawn: a forked process would inherit what this one has done with the renderer.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1 if fresh else None) as pool:
            futures = [pool.submit(render, index, shard) for index, shard in enumerate(shards)]
            return [clip for future in futures for clip in future.result()]
    except BrokenProcessPool as error:
        raise ResourceError(
            f"A process that renders for {folder} died: {error}. Allowed is one that ends by itself. Check free memory "
            "and disk, and repeat the command with fewer workers."
        ) from error


def write_splits(folder: Path, splits: Sequence[str], clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    """Write `<split>.jsonl` for every split.

    Args:
        folder: Where to.
        splits: The split of each clip.
        clips: The clips.

    Returns:
        Split -> its clips, in order.
    """
    members: dict[str, list[Clip]] = {}
    for split, clip in zip(splits, clips, strict=True):
        members.setdefault(split, []).append(clip)
    for split, of_split in members.items():
        write_manifest(folder / f"{split}.jsonl", of_split)
    return members
