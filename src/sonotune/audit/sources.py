"""The clips of an audit, as their source names them. Headers are read where lengths are missing; nothing is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from sonotune.alignment.base import Aligner, takes
from sonotune.audit.audio_digest import AudioDigests
from sonotune.data.corpus import read_source
from sonotune.data.manifest import digest, fill_durations, has_words
from sonotune.errors import ManifestError
from sonotune.processes import SINGLE_PROCESS, Processes
from sonotune.types import Clip
from sonotune.wording import counted

AUDIO_FILE: Final = "audio.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcribed:
    """The clips of a source that have a transcript with words.

    Attributes:
        clips: In order.
        without: Clips of the source beside them: of an empty transcript, which says that nothing is said, or of none.
        digest: SHA-256 over all clips of the source (`data.manifest.digest`).
        audio_digest: SHA-256 over the contents of the audio files of its clips; empty where nobody asked for it.
        too_long: Clips that were left out because the aligner takes none of their length.
    """

    clips: tuple[Clip, ...]
    without: int
    digest: str
    audio_digest: str = ""
    too_long: int = 0

    def with_audio(self, folder: Path, processes: Processes = SINGLE_PROCESS) -> Transcribed:
        """With the digest of its audio, of which the folder of an audit remembers what was read."""
        return replace(self, audio_digest=audio_digest(self.clips, folder, processes))

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


def audio_digest(clips: Sequence[Clip], folder: Path, processes: Processes = SINGLE_PROCESS) -> str:
    """SHA-256 over the contents of the audio files of clips with words, in order.

    Args:
        clips: Of a source.
        folder: Of an audit; files that it has read and that have not changed since are not read again.
        processes: Share the files.
    """
    worded = [clip for clip in clips if clip.text is not None and has_words(clip)]
    return AudioDigests(folder / AUDIO_FILE, keep=processes.main).of(worded, processes=processes)


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
