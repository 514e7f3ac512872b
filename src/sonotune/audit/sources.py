"""The clips of an audit, as their source names them. Headers are read where lengths are missing; nothing is decoded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sonotune.alignment.base import Aligner, takes
from sonotune.data.corpus import read_source
from sonotune.data.manifest import digest, fill_durations, has_words
from sonotune.errors import ManifestError
from sonotune.types import Clip
from sonotune.wording import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcribed:
    """The clips of a source that have a transcript with words.

    Attributes:
        clips: In order.
        without: Clips of the source beside them: of an empty transcript, which says that nothing is said, or of none.
        digest: SHA-256 over all clips of the source (`data.manifest.digest`).
        too_long: Clips that were left out because the aligner takes none of their length.
    """

    clips: tuple[Clip, ...]
    without: int
    digest: str
    too_long: int = 0

    def within(self, aligner: Aligner) -> Transcribed:
        """Those that an aligner takes.

        Raises:
            ManifestError: It takes none.
        """
        kept = tuple(clip for clip in self.clips if takes(aligner, clip))
        if not kept:
            raise ManifestError(
                f"all {counted(len(self.clips), 'clip')} with transcripts are longer than {aligner.max_duration_s:g} "
                "s, which is what the model aligns. Take a CTC model, which aligns clips of any length."
            )
        return replace(self, clips=kept, too_long=len(self.clips) - len(kept))


def read_transcribed(source: str, *, root: Path | None = None, allow_outside_root: bool = False) -> Transcribed:
    """Read a source.

    Args:
        source: As `data.train` names it.
        root: Folder that audio paths must stay in.
        allow_outside_root: Let paths leave it.

    Raises:
        ManifestError: It cannot be read, or no clip has words.
    """
    clips = read_source(source, root=root, allow_outside_root=allow_outside_root)
    worded = [clip for clip in clips if clip.text is not None and has_words(clip)]
    if not worded:
        raise ManifestError(
            f"{source} has {counted(len(clips), 'clip')} and no transcript with words, and an audit asks whether "
            "transcripts belong to their audio. Give clips a `text`."
        )
    return Transcribed(clips=tuple(fill_durations(worded)), without=len(clips) - len(worded), digest=digest(clips))
