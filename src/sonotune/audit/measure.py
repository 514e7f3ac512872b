"""Scores of clips, remembered: what an aligner and the signal say of each, in a file that an interrupted audit reads.

A line of the file has a key: a digest of the aligner, of the clip and of its transcript. What has a line is not
computed again, so an audit goes on where it was killed, a second look pays for its new clips alone, and a corpus of
which some transcripts were mended is aligned again in those.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sonotune.alignment.base import Aligner, Alignment
from sonotune.audio.activity import energy_of_blocks, loud_frames, speech_spans
from sonotune.audio.io import probe, read, read_blocks
from sonotune.audio.quality import SignalQuality, measure_quality
from sonotune.audit.record import WordEntries
from sonotune.audit.scores import ClipScores, Span, score_alignment, scores_from_json
from sonotune.errors import AudioError, ManifestError
from sonotune.json_files import Number, read_json_lines
from sonotune.processes import SINGLE_PROCESS, Processes
from sonotune.progress import phase
from sonotune.runs.files import append_bytes, atomic_write_bytes, digest_json
from sonotune.types import Clip, Finding, Word

SCORES_FILE: Final = "scores.jsonl"
QUALITY_S: Final = 60.0
"""Of a longer clip, so much from its beginning tells the quality of its signal."""
_SPEECH_RATE_HZ: Final = 16_000
_CHUNK: Final = 256  # clips whose scores are written at once
_DO: Final = "Remove the file; the audit measures its clips again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known of one clip.

    Attributes:
        key: Of the clip, its transcript and the aligner.
        scores: None of a clip that could not be aligned.
        problem: Why not; empty otherwise.
        check: Stable name of that; empty otherwise.
        words: In time, as far as they were aligned.
        transcript: What the model writes by itself.
        quality: Of the signal; None where the audio could not be read.
    """

    key: str
    scores: ClipScores | None
    problem: str = ""
    check: str = ""
    words: tuple[Word, ...] = ()
    transcript: str | None = None
    quality: SignalQuality | None = None

    def to_json(self) -> dict[str, Any]:
        """A line of the file."""
        row: dict[str, Any] = {"key": self.key, "check": self.check, "problem": self.problem}
        if self.scores is not None:
            row["scores"] = self.scores.to_json()
        if self.words:
            row["words"] = [[word.text, word.start_s, word.end_s, word.score] for word in self.words]
        if self.transcript is not None:
            row["transcript"] = self.transcript
        if self.quality is not None:
            row["quality"] = asdict(self.quality)
        return row


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sound:
    """What the waveform of a clip says, whatever its transcript."""

    speech: tuple[Span, ...]
    quality: SignalQuality


@dataclass(kw_only=True)
class Measurer:
    """Measures clips, each once.

    Attributes:
        aligner: Places transcripts in time.
        identity: Digest of the aligner's model and settings.
        normalizer: Of the transcripts that are compared (registry name).
        file: Where what was measured is kept; None keeps nothing.
        processes: Share the clips; each has all of them in the end.
    """

    aligner: Aligner
    identity: str
    normalizer: str = "basic"
    file: Path | None = None
    processes: Processes = SINGLE_PROCESS
    _known: dict[str, Measured] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file is not None and self.file.exists():
            self._known = {row.key: row for row in _read(self.file)}
            if self.processes.main and not self.file.read_bytes().endswith(b"\n"):  # killed in the middle of a line
                atomic_write_bytes(self.file, b"".join(map(_line, self._known.values())))

    def measure(self, clips: Sequence[Clip], *, doing: str) -> list[Measured]:
        """Measure clips, in their order.

        Args:
            clips: Of any ids; a clip with another transcript is another clip.
            doing: What is shown meanwhile.
        """
        keys = [self._key(clip) for clip in clips]
        missing = [
            clip
            for clip, key in {key: (clip, key) for clip, key in zip(clips, keys, strict=True)}.values()
            if key not in self._known
        ]
        with phase(doing, len(clips), "clips") as advance:
            done = len(clips) - len(missing)
            for start in range(0, len(missing), _CHUNK):
                chunk = missing[start : start + _CHUNK]
                shares = self.processes.all_gather(list(self._computed(self.processes.shard(chunk))))
                made = [row for share in shares for row in share]
                self._known |= {row.key: row for row in made}
                if self.file is not None and self.processes.main:
                    append_bytes(self.file, b"".join(map(_line, made)))
                done += len(chunk)
                advance(done)
        return [self._known[key] for key in keys]

    def _key(self, clip: Clip) -> str:
        """Of everything that decides what is measured; the audio by its size and time."""
        what = [clip.start_s, clip.duration_s, clip.channel, clip.text, clip.language]
        return digest_json([self.identity, self.normalizer, clip.path.name, _file_state(clip.path), *what])

    def _computed(self, clips: Sequence[Clip]) -> Iterator[Measured]:
        sounds: dict[tuple[Any, ...], _Sound | None] = {}
        for clip, found in zip(clips, self.aligner.align(clips), strict=True):
            place = (clip.path, clip.start_s, clip.duration_s, clip.channel)
            if place not in sounds:
                sounds[place] = _heard(clip)
            yield self._row(clip, found, sounds[place])

    def _row(self, clip: Clip, found: Alignment | Finding, sound: _Sound | None) -> Measured:
        key, quality = self._key(clip), None if sound is None else sound.quality
        if isinstance(found, Finding):
            return Measured(key=key, scores=None, problem=found.message, check=found.check, quality=quality)
        return Measured(
            key=key,
            scores=score_alignment(
                found,
                text=clip.text or "",
                duration_s=clip.duration_s,
                speech=() if sound is None else sound.speech,
                language=clip.language,
                normalizer=self.normalizer,
            ),
            words=found.words,
            transcript=found.transcript,
            quality=quality,
        )


def _heard(clip: Clip) -> _Sound | None:
    try:
        rate_hz = probe(clip.path).sample_rate_hz
        blocks = read_blocks(
            clip.path,
            start_s=clip.start_s,
            duration_s=clip.duration_s,
            channel=clip.channel,
            sample_rate_hz=_SPEECH_RATE_HZ,
            max_duration_s=None,
        )
        speech = speech_spans(loud_frames(energy_of_blocks(blocks, _SPEECH_RATE_HZ)))
        waveform_S = read(
            clip.path,
            start_s=clip.start_s,
            duration_s=min(clip.duration_s, QUALITY_S),
            channel=clip.channel,
            sample_rate_hz=rate_hz,
        )
    except AudioError:
        return None  # the aligner says so
    return _Sound(speech=tuple(speech), quality=measure_quality(waveform_S, rate_hz))


def _file_state(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _line(row: Measured) -> bytes:
    return (json.dumps(row.to_json(), ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")


class _Quality(TypedDict):
    level_db: Number
    clipped_share: Number
    silent_share: Number
    signal_to_noise_db: Number | None
    bandwidth_hz: Number
    recorded_rate_hz: int | None


class _Line(TypedDict):
    key: str
    check: str
    problem: str
    scores: NotRequired[dict[str, Any]]
    words: NotRequired[list[WordEntries]]
    transcript: NotRequired[str]
    quality: NotRequired[_Quality]


_LINE: Final[TypeAdapter[_Line]] = TypeAdapter(_Line)


def _read(file: Path) -> Iterator[Measured]:
    """The lines of a file; a last one without its end, as a kill leaves it, is passed over."""
    for row in read_json_lines(file, _LINE, error=ManifestError, do=_DO, whole=True):
        scores = row.get("scores")
        quality: Mapping[str, Any] | None = row.get("quality")
        yield Measured(
            key=row["key"],
            check=row["check"],
            problem=row["problem"],
            scores=None if scores is None else scores_from_json(scores, where=str(file)),
            words=tuple(
                Word(text=text, start_s=start_s, end_s=end_s, score=score)
                for text, start_s, end_s, score in row.get("words", ())
            ),
            transcript=row.get("transcript"),
            quality=None if quality is None else SignalQuality(**quality),
        )
