"""Open audio files with care: regular files only, header against bytes, limits on rate and channels.

`opened` is the one door to the decoder; `io` is the package behind it.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile

from sonotune.audio import containers
from sonotune.errors import AudioError

MIN_SAMPLE_RATE_HZ = 1_000
MAX_SAMPLE_RATE_HZ = 384_000
MAX_CHANNELS = 64

MAX_MISSING_S = 0.1
MAX_MISSING_SHARE = 0.05
LEAST_BEARABLE_S = 0.05
"""Recorders and cutting tools lose a few milliseconds at the end, which no word needs. A file or span that ends so
little early is read as far as it goes; where more is missing, the transcript may say what is not there."""

_UNKNOWN_FRAMES = 1 << 60  # libsndfile says 2^63 - 1 where a FLAC header has no length
_SKIP_FRAMES = 1 << 14
_MAX_UNCOUNTED_BYTES = 1 << 28
_LONG_BYTES, _MOST_LOOKED_THROUGH = 1 << 20, 10_000
_looked_through: dict[tuple[int, int, int, int], str | None] = {}  # device, inode, size, time of a file -> its damage
_READABLE = "WAV, AIFF, AU, NIST SPHERE, FLAC, Ogg Vorbis, Ogg Opus, MP3"


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioInfo:
    """What the header of an audio file says.

    Attributes:
        path: The file.
        sample_rate_hz: Rate of the file.
        num_frames: Samples of each channel.
        num_channels: Channels.
        duration_s: `num_frames / sample_rate_hz`.
        format: Container, in libsndfile's words: `WAV`, `FLAC`, `OGG`, `MP3`, ...
        subtype: Encoding, in libsndfile's words: `PCM_16`, `VORBIS`, ...
        missing_s: What the header promises beyond the last sample, in seconds; at most `bearable_s`.
    """

    path: Path
    sample_rate_hz: int
    num_frames: int
    num_channels: int
    duration_s: float
    format: str
    subtype: str
    missing_s: float = 0.0


def bearable_s(duration_s: float) -> float:
    """How much may be missing at the end of a file or span of a length, in seconds."""
    return min(MAX_MISSING_S, max(LEAST_BEARABLE_S, MAX_MISSING_SHARE * duration_s))


class Decoder(soundfile.SoundFile):  # type: ignore[misc, unused-ignore]  # soundfile has no type stubs
    """A `SoundFile` that is placed once and then read from front to back.

    `SoundFile.read` seeks to where it is after each block of a seekable file. In an MP3 that resets the decoder, which
    then misses its bit reservoir (errors up to 0.09 measured with blocks of 4,096).

    Attributes:
        seek_limit: Frame from which on libsndfile misplaces a seek; None where it never does.
    """

    seek_limit: int | None = None

    def seekable(self) -> bool:
        """Say no, so that `read` does not seek; `seek` works all the same."""
        return False

    def go_to(self, frame: int) -> None:
        """Place the decoder at a frame, exactly, by decoding what leads up to it where a seek alone is not enough.

        The frames of an MP3 may be made of bits from up to 511 bytes earlier: half a second at 8 kbit/s.
        """
        lead = min(frame, int(self.samplerate)) if self.format == "MP3" else 0
        if self.seek_limit is not None:
            lead = max(lead, frame - self.seek_limit)
        if super().seekable():
            self.seek(frame - lead)
        else:
            lead = frame  # GSM 6.10 in WAV can only be read from its start, where a new decoder stands
        while lead > 0:
            skipped = len(self.read(min(lead, _SKIP_FRAMES), dtype="float32", always_2d=True))
            lead = lead - skipped if skipped else 0


@contextmanager
def opened(path: Path) -> Iterator[tuple[AudioInfo, Decoder]]:
    """Open a regular audio file and check all that its header tells."""
    fd, size = _open_regular(path)
    try:
        container = containers.identify(fd, size)
        if container is None:
            start = os.pread(fd, 12, 0)
            raise AudioError(
                "not_audio", f"{path} is not audio: it starts with {start!r}. Readable are {_READABLE}; convert it."
            )
        if container == "OGG" and (damage := _ogg_damage(fd, size)):
            raise AudioError("unreadable", f"{path} is damaged: {damage}. Copy the file again.")
        short = containers.shortfall(fd, size, container)
        if short is not None and not _bearable(short):
            raise _cut_off(path, short)
        with _decoder(path, fd, size, container) as decoder:
            info = _checked_info(path, decoder, fd, container)
            if short is not None:
                info = _with_missing(info, short)
            yield info, decoder
    finally:
        os.close(fd)


def _ogg_damage(fd: int, size: int) -> str | None:
    """What `containers.ogg_damage` says, once for a long file: a corpus may open it for each of its clips."""
    if size < _LONG_BYTES:
        return containers.ogg_damage(fd, size)
    status = os.fstat(fd)
    identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    if identity not in _looked_through:
        if len(_looked_through) >= _MOST_LOOKED_THROUGH:
            _looked_through.clear()
        _looked_through[identity] = containers.ogg_damage(fd, size)
    return _looked_through[identity]


def _bearable(short: containers.Shortfall) -> bool:
    """Whether the share of a file that is missing is small; the samples that are there can be counted."""
    return short.of_samples and short.declared_bytes - short.present_bytes <= MAX_MISSING_SHARE * short.declared_bytes


def _with_missing(info: AudioInfo, short: containers.Shortfall) -> AudioInfo:
    promised_s = info.duration_s * short.declared_bytes / short.present_bytes
    if promised_s - info.duration_s > bearable_s(promised_s):
        raise _cut_off(info.path, short)
    return replace(info, missing_s=promised_s - info.duration_s)


def _cut_off(path: Path, short: containers.Shortfall) -> AudioError:
    return AudioError(
        "truncated",
        f"{path} is cut off: {short.part} should have {short.declared_bytes:,} bytes and has "
        f"{short.present_bytes:,}. Fetch the file again, or leave it out.",
    )


def _open_regular(path: Path) -> tuple[int, int]:
    """Open a file that is known to be regular, so that neither `open` nor `read` can block."""
    try:
        _check_regular(path, os.stat(path).st_mode)  # noqa: PTH116  (Path.stat, without making a Path)
        # A FIFO put there in between opens at once because of O_NONBLOCK, and is refused on the second look.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        absent = isinstance(error, ValueError) or error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        if absent:
            raise AudioError(
                "missing", f"{str(path)!r} does not exist ({error}). Check the path in the manifest."
            ) from error
        raise AudioError("unreadable", f"{path} cannot be opened ({error}). Check its permissions.") from error
    try:
        status = os.fstat(fd)
        _check_regular(path, status.st_mode)
        if status.st_size == 0:
            raise AudioError("empty", f"{path} is empty (0 bytes). Fetch the file again, or leave it out.")
    except BaseException:
        os.close(fd)
        raise
    return fd, status.st_size


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = ((stat.S_ISDIR, "directory"), (stat.S_ISFIFO, "FIFO"), (stat.S_ISSOCK, "socket"))
    kind = next((name for test, name in kinds if test(mode)), "device")
    raise AudioError("not_regular", f"{path} is a {kind}, not a regular file. Name an audio file.")


def _decoder(path: Path, fd: int, size: int, container: containers.Container) -> Decoder:
    os.lseek(fd, 0, os.SEEK_SET)  # libsndfile takes the current position for the start of the file
    try:
        decoder = Decoder(fd, closefd=False)
        if container == "MP3":
            decoder = _with_known_length(path, fd, size, decoder)
        elif container == "OGG" and decoder.subtype == "VORBIS":
            decoder.seek_limit = containers.ogg_last_page_start(fd, size)
        elif (
            decoder.frames <= 0
            and size <= _MAX_UNCOUNTED_BYTES
            and (following := containers.unannounced_bytes(fd, container))
        ):
            decoder.close()
            decoder = Decoder(io.BytesIO(containers.with_data_length(fd, size, following)))
    except soundfile.LibsndfileError as error:
        raise AudioError(
            "unreadable",
            f"{path} looks like {container} and cannot be decoded ({decoder_words(error)}). "
            "Convert it, or leave it out.",
        ) from error
    return decoder


def _with_known_length(path: Path, fd: int, size: int, decoder: Decoder) -> Decoder:
    """Count the frames of an MP3 that does not, and correct the decoder's guess."""
    stream = containers.mpeg_stream(fd, size)
    if stream is None or stream.counted:
        return decoder
    num_frames, broken_at = containers.count_mpeg_frames(fd, stream, size)
    per_frame = containers.samples_per_frame(fd, stream)
    if broken_at is None and abs(num_frames * per_frame - decoder.frames) <= 2 * per_frame:
        return decoder
    decoder.close()
    if broken_at is not None or size > _MAX_UNCOUNTED_BYTES:
        where = f"its frames break off at byte {broken_at:,}" if broken_at is not None else f"it has {size:,} bytes"
        raise AudioError(
            "unreadable",
            f"{path} is an MP3 that does not say how long it is (no Xing header), and {where}. "
            "Convert it to FLAC or WAV.",
        )
    return Decoder(io.BytesIO(containers.with_frame_count(fd, stream, num_frames, size)))


def _checked_info(path: Path, decoder: Decoder, fd: int, container: containers.Container) -> AudioInfo:
    rate, channels, frames = int(decoder.samplerate), int(decoder.channels), int(decoder.frames)
    check_rate(rate, f"the rate of {path}")
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(
            "channels", f"{path} has {channels} channels; allowed are 1 to {MAX_CHANNELS}. Extract the one you need."
        )
    if frames <= 0 and (following := containers.unannounced_bytes(fd, container)):  # too many to hold
        raise AudioError(
            "unreadable",
            f"{path} does not say how long it is: its header names 0 bytes of samples, and {following:,} follow. "
            "It was written to a pipe, or its recorder was stopped before it could fill in the length. Write it again "
            "(`sox --ignore-length IN OUT.wav`).",
        )
    if frames <= 0:
        raise AudioError("no_samples", f"{path} has a header and no samples. Record it again, or leave it out.")
    if frames >= _UNKNOWN_FRAMES:
        raise AudioError(
            "unreadable",
            f"{path} does not say how long it is: it was written to a pipe. Write it again to a file "
            "(`flac -d` and `flac`, or convert it to WAV).",
        )
    return AudioInfo(
        path=Path(path),
        sample_rate_hz=rate,
        num_frames=frames,
        num_channels=channels,
        duration_s=frames / rate,
        format=str(decoder.format),
        subtype=str(decoder.subtype),
    )


def check_rate(rate_hz: int, what: str) -> None:
    """Refuse a rate outside the limits; `what` names it in the message."""
    if not MIN_SAMPLE_RATE_HZ <= rate_hz <= MAX_SAMPLE_RATE_HZ:
        raise AudioError(
            "sample_rate",
            f"{what} is {rate_hz} Hz; allowed are {MIN_SAMPLE_RATE_HZ} to {MAX_SAMPLE_RATE_HZ} Hz. "
            "If the header is wrong, write the file again with the right one.",
        )


def decoder_words(error: soundfile.LibsndfileError) -> str:
    """The decoder's words; some of its codes have none."""
    return str(getattr(error, "error_string", "")).strip() or f"decoder error {getattr(error, 'code', '?')}"
