"""Scores of clips, remembered: what an aligner and the signal say of each, in a file that an interrupted audit reads.

A line of the file has a key: a digest of the aligner, of the clip and of its transcript. What has a line is not
computed again, so an audit goes on where it was killed, a second look pays for its new clips alone, and a corpus of
which some transcripts were mended is aligned again in those.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from sonotune.alignment.base import Aligner, Alignment, DetectedLanguage, Recording, recording
from sonotune.audio.activity import energy_of_blocks, frame_energy_db, loud_frames, speech_spans
from sonotune.audio.io import probe, read, read_blocks
from sonotune.audio.quality import SignalQuality, measure_quality, samples_digest
from sonotune.audit.record import WordEntries
from sonotune.audit.scores import ClipScores, Span, score_alignment, scores_from_json
from sonotune.errors import AudioError, ManifestError
from sonotune.json_files import MAX_LINE_BYTES, Count, Number, parse_json
from sonotune.processes import SINGLE_PROCESS, Processes
from sonotune.progress import note, phase
from sonotune.runs.files import append_bytes, atomic_write_bytes, digest_json
from sonotune.types import Clip, Finding, Word
from sonotune.wording import counted

SCORES_FILE: Final = "scores.jsonl"
QUALITY_S: Final = 60.0
"""Of a longer clip, so much from its beginning tells the quality of its signal."""
MAX_UNKNOWN: Final = 0.5
"""Of a transcript's characters. What a model has no symbol for fits any sound, and says nothing about the text."""
_SPEECH_RATE_HZ: Final = 16_000
_UNIT: Final = 128  # clips whose scores are written at once


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
        samples: Digest of the samples and their number; empty where the audio could not be read.
        language: That the model detects; None of a model that tells none.
    """

    key: str
    scores: ClipScores | None
    problem: str = ""
    check: str = ""
    words: tuple[Word, ...] = ()
    transcript: str | None = None
    quality: SignalQuality | None = None
    samples: str = ""
    language: DetectedLanguage | None = None

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
        if self.samples:
            row["samples"] = self.samples
        if self.language is not None:
            row["detected_language"] = self.language._asdict()
        return row


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """What the waveform of a clip says, whatever its transcript."""

    speech: tuple[Span, ...]
    quality: SignalQuality
    samples: str


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
            rows, damaged = _read(self.file)
            # What was written together counts together: a kill in the middle of a write leaves a part of it.
            whole = max((at for at, (_, left) in enumerate(rows, start=1) if not left), default=0)
            known = [row for row, _ in rows[:whole]]
            self._known = {row.key: row for row in known}
            cut = damaged or whole < len(rows) or not self.file.read_bytes().endswith(b"\n")
            if self.processes.main and cut:
                atomic_write_bytes(self.file, _lines(list(self._known.values())))

    def measure(self, clips: Sequence[Clip], *, doing: str) -> list[Measured]:
        """Measure clips, in their order.

        Args:
            clips: Of any ids; a clip with another transcript is another clip.
            doing: What is shown meanwhile.
        """
        keys = [self._key(clip) for clip in clips]
        units = [
            [(clip, key) for clip, key in unit if key not in self._known]
            for unit in _units(list({key: (clip, key) for clip, key in zip(clips, keys, strict=True)}.values()))
        ]
        units = [unit for unit in units if unit]
        with phase(doing, len(clips), "clips") as advance:
            done = len(clips) - sum(map(len, units))
            for start in range(0, len(units), self.processes.world_size):
                together = units[start : start + self.processes.world_size]
                mine = self.processes.shard(together)
                shares = self.processes.all_gather([row for unit in mine for row in self._computed(unit)])
                made = [row for share in shares for row in share]
                self._known |= {row.key: row for row in made}
                if self.file is not None and self.processes.main:
                    append_bytes(self.file, _lines(made))
                done += len(made)
                advance(done)
        return [self._known[key] for key in keys]

    def language_of(self, clip: Clip) -> str | None:
        """What a clip says it is in, or the aligner was told of clips that say nothing."""
        return clip.language or self.aligner.settings.language

    def _key(self, clip: Clip) -> str:
        """Of everything that decides what is measured; the audio by its path, size and time."""
        what = [clip.start_s, clip.duration_s, clip.channel, clip.text, clip.language]
        return digest_json([self.identity, self.normalizer, str(clip.path.resolve()), file_state(clip.path), *what])

    def _computed(self, unit: Sequence[tuple[Clip, str]]) -> Iterator[Measured]:
        sounds: dict[Recording, Sound | None] = {}
        for (clip, key), found in zip(unit, self.aligner.align([clip for clip, _ in unit]), strict=True):
            place = recording(clip)
            if place not in sounds:
                sounds[place] = sound_of(clip)
            yield self._row(clip, key, found, sounds[place])

    def _row(self, clip: Clip, key: str, found: Alignment | Finding, sound: Sound | None) -> Measured:
        quality, samples = (None, "") if sound is None else (sound.quality, sound.samples)
        if isinstance(found, Finding):
            return Measured(
                key=key, scores=None, problem=found.message, check=found.check, quality=quality, samples=samples
            )
        if sound is not None and not sound.speech:
            return Measured(
                key=key,
                scores=None,
                problem=f"clip {clip.id} has a transcript with words, and its audio is silent. Check that the "
                "transcript belongs to the clip.",
                check="audit.silent",
                transcript=found.transcript,
                quality=quality,
                samples=samples,
            )
        if found.unknown_share > MAX_UNKNOWN:
            return Measured(
                key=key,
                scores=None,
                problem=f"clip {clip.id} has a transcript of which the model has no symbol for "
                f"{100 * found.unknown_share:.0f} % of the characters. Take a model of its script, or write numbers "
                "and symbols as words.",
                check="audit.unknown_text",
                transcript=found.transcript,
                quality=quality,
                samples=samples,
                language=found.language,
            )
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
            samples=samples,
            language=found.language,
        )


def _units(clips: Sequence[tuple[Clip, str]]) -> list[list[tuple[Clip, str]]]:
    """Clips that one process measures and writes at once; clips of one recording that follow each other stay together.

    What is in a unit depends on all clips, also on those that are known already: batches, and with them the last
    digits of what is computed, are the same however often an audit was stopped and whoever shares it.
    """
    units: list[list[tuple[Clip, str]]] = []
    for _, group in groupby(clips, key=lambda one: recording(one[0])):
        members = list(group)
        if not units or len(units[-1]) + len(members) > _UNIT:
            units.append([])
        units[-1] += members
    return units


def sound_of(clip: Clip) -> Sound | None:
    """What the waveform of a clip says; None where it cannot be read."""
    try:
        rate_hz = probe(clip.path).sample_rate_hz
        waveform_S = read(
            clip.path,
            start_s=clip.start_s,
            duration_s=min(clip.duration_s, QUALITY_S),
            channel=clip.channel,
            sample_rate_hz=rate_hz,
        )
        energy_db = frame_energy_db(waveform_S, rate_hz)
        whole_db = energy_db
        if clip.duration_s > QUALITY_S or rate_hz != _SPEECH_RATE_HZ:
            blocks = read_blocks(
                clip.path,
                start_s=clip.start_s,
                duration_s=clip.duration_s,
                channel=clip.channel,
                sample_rate_hz=_SPEECH_RATE_HZ,
                max_duration_s=None,
            )
            whole_db = energy_of_blocks(blocks, _SPEECH_RATE_HZ)
    except AudioError:
        return None  # the aligner says so
    return Sound(
        speech=tuple(speech_spans(loud_frames(whole_db))),
        quality=measure_quality(waveform_S, rate_hz, energy_db=energy_db),
        samples=f"{samples_digest(waveform_S)} {round(clip.duration_s * rate_hz)}",
    )


def file_state(path: Path) -> list[int]:
    """Size and time of a file, which tell that it was changed; empty where there is none."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _lines(rows: Sequence[Measured]) -> bytes:
    """Rows that are written at once, each with how many of them follow it."""
    made = ({**row.to_json(), "left": len(rows) - at} for at, row in enumerate(rows, start=1))
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in made)
    return text.encode("utf-8", "backslashreplace")


class _Quality(TypedDict):
    level_db: Number
    clipped_share: Number
    silent_share: Number
    signal_to_noise_db: Number | None
    bandwidth_hz: Number
    recorded_rate_hz: int | None


class _Detected(TypedDict):
    code: str
    probability: Number


class _Line(TypedDict):
    key: str
    check: str
    problem: str
    scores: NotRequired[dict[str, Any]]
    words: NotRequired[list[WordEntries]]
    transcript: NotRequired[str]
    quality: NotRequired[_Quality]
    samples: NotRequired[str]
    detected_language: NotRequired[_Detected]
    left: NotRequired[Count]


_LINE: Final[TypeAdapter[_Line]] = TypeAdapter(_Line)


def _read(file: Path) -> tuple[list[tuple[Measured, int]], int]:
    """The rows of a file, with how many follow each, and how many lines are damaged: their clips are measured again."""
    rows: list[tuple[Measured, int]] = []
    damaged = 0
    for line in _whole_lines(file):
        try:
            row = parse_json(line, _LINE, where=str(file), error=ManifestError, do="")
            scores = row.get("scores")
            known = None if scores is None else scores_from_json(scores, where=str(file))
        except ManifestError:
            damaged += 1
            continue
        quality: Mapping[str, Any] | None = row.get("quality")
        detected = row.get("detected_language")
        measured = Measured(
            key=row["key"],
            check=row["check"],
            problem=row["problem"],
            scores=known,
            words=tuple(
                Word(text=text, start_s=start_s, end_s=end_s, score=score)
                for text, start_s, end_s, score in row.get("words", ())
            ),
            transcript=row.get("transcript"),
            quality=None if quality is None else SignalQuality(**quality),
            samples=row.get("samples", ""),
            language=None if detected is None else DetectedLanguage(**detected),
        )
        rows.append((measured, row.get("left", 0)))
    if damaged:
        note(f"{counted(damaged, 'line')} of {file} {'is' if damaged == 1 else 'are'} damaged; measured again")
    return rows, damaged


def _whole_lines(file: Path) -> Iterator[bytes]:
    """Lines that have an end; a last one without it is what a kill left."""
    try:
        if not file.is_file():  # a pipe would be waited for
            raise ManifestError(f"{file} cannot be read: it is no file. Remove it.")
        with file.open("rb") as stream:
            while (line := stream.readline(MAX_LINE_BYTES + 1)).endswith(b"\n"):
                if line.strip():
                    yield line
    except OSError as fault:
        reason = fault.strerror or fault
        raise ManifestError(f"{file} cannot be read: {reason}. Make it readable, or remove it.") from fault
