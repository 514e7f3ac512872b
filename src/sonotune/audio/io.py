"""Decode, check and write audio: what the rest of the project knows of audio files.

WAV, AIFF, AU, NIST SPHERE, FLAC, Ogg (Vorbis, Opus) and MP3 of any width, rate and channel count become mono float32 at
the rate asked for. Shape letter: S samples.

- Only regular files are opened: a FIFO, a device or a directory is refused before `open` could block.
- Only the span asked for is decoded, in blocks, so that memory is that of the result plus about 2 MB.
- A file whose header promises more than its bytes hold is refused, although the decoder would read it as a shorter one;
  one that lacks a few milliseconds at its end is read as far as it goes, and `AudioInfo.missing_s` says so.
- The length, rate and channel count come from the header and are limited before anything is decoded.

Every refusal is an `AudioError` with a stable `reason`.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from sonotune.audio.activity import signal_level_db
from sonotune.audio.opening import AudioInfo, Decoder, bearable_s, check_rate, decoder_words, opened
from sonotune.errors import AudioError, ResourceError

__all__ = ["AudioInfo", "Measured", "measure", "probe", "read", "read_blocks", "transcode", "write"]

DEFAULT_MAX_DURATION_S = 7_200.0
SPAN_TOLERANCE_S = 0.02
"""How far any span may reach past the end of its file: manifests round durations. The span then ends with the file, as
does a long one that reaches `opening.bearable_s` past it."""

MAX_DECODED_SAMPLES = 4_000_000_000
"""Samples over all channels that one call may decode: two hours of twelve channels at 44.1 kHz."""
BOMB_SAMPLES = 1 << 26
BOMB_RATIO = 1_000
"""More than `BOMB_SAMPLES` at more than `BOMB_RATIO` times the bytes of the file (as 16 bit) is refused: no recording
compresses so, whereas a FLAC of constants turns 293 kB into 922 MB."""

MAX_AMPLITUDE = 1e3
"""Largest sample, full scale being 1.0. Recordings that clip reach 1 or 2; beyond a thousand a file holds integers that
were written as floats, or garbage, whose features are no speech."""

BLOCK_SAMPLES = 1 << 18
"""Samples, of all channels together, that are decoded or encoded at once. Changes nothing in the output."""
_MARGIN_SAMPLES = 256  # at the lower rate: beyond it the HQ filter of soxr is under 2e-6
_MP3_FRAME_SAMPLES = 1_152
_WRITABLE = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}

Waveform = NDArray[np.float32]


def probe(path: Path) -> AudioInfo:
    """Read the header of an audio file, and compare it with the file's length where the container allows.

    Args:
        path: The file.

    Returns:
        Rate, length, channels and encoding.

    Raises:
        AudioError: `missing`, `not_regular`, `empty`, `not_audio`, `truncated`, `unreadable`, `no_samples`,
            `sample_rate`, `channels`.
    """
    with opened(path) as (info, _):
        return info


def read(
    path: Path,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    channel: int | None = None,
    sample_rate_hz: int = 16_000,
    max_duration_s: float | None = DEFAULT_MAX_DURATION_S,
) -> Waveform:
    """Decode a span of an audio file to one channel at one rate.

    The span is the same samples as that part of the whole file resampled: where the rates differ, a margin of the
    filter's length is decoded at either side and cut off afterwards (differences under 1e-5 of full scale; Ogg Opus,
    whose decoder settles after each jump, up to 5e-3).

    Args:
        path: The file.
        start_s: Begin of the span, in seconds.
        duration_s: Length of the span in seconds; None reads to the end.
        channel: Zero-based channel to keep; None takes the mean of all.
        sample_rate_hz: Rate of the result (soxr, high quality).
        max_duration_s: Longest span that is decoded, in seconds; None sets no limit.

    Returns:
        (S,) float32, `round((start_s + duration_s) * rate) - round(start_s * rate)` samples, fewer where the file ends
        a little before the span, full scale 1.0. Samples beyond full scale stay as they are, up to `MAX_AMPLITUDE`.

    Raises:
        AudioError: Any reason of `probe`; `too_long`, `bomb`, `span`, `channels`, `non_finite`; and `truncated` or
            `unreadable` when the decoder stops before the end; `amplitude`: a sample is beyond `MAX_AMPLITUDE`.
    """
    with _span_opened(path, start_s, duration_s, channel, sample_rate_hz, max_duration_s) as span:
        result = np.empty(span.most_samples, dtype=np.float32)
        return result[: _fill(result, span.blocks)]


def read_blocks(
    path: Path,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    channel: int | None = None,
    sample_rate_hz: int = 16_000,
    max_duration_s: float | None = DEFAULT_MAX_DURATION_S,
) -> Iterator[Waveform]:
    """The samples of `read` one block after the other, for recordings that are too long to hold.

    Yields:
        (S,) float32, of some seconds each; the blocks one after the other are what `read` returns.

    Raises:
        AudioError: As `read`, when the first block is asked for or on the way.
    """
    with _span_opened(path, start_s, duration_s, channel, sample_rate_hz, max_duration_s) as span:
        yield from span.blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What decoding a span says of it.

    Attributes:
        info: The header.
        level_db: See `activity.signal_level_db`; of the channel that is used, or of the mean of all. None where no more
            than the header was read.
    """

    info: AudioInfo
    level_db: float | None


def measure(
    path: Path,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    channel: int | None = None,
    max_duration_s: float | None = DEFAULT_MAX_DURATION_S,
    decode: bool = True,
) -> Measured:
    """Decode a span block by block, keep nothing but how loud it gets, and report the first thing wrong with it.

    Args:
        path: The file.
        start_s: Begin of the span, in seconds.
        duration_s: Length of the span in seconds; None goes to the end.
        channel: Zero-based channel that will be used; None takes the mean of all.
        max_duration_s: Longest span that is decoded, in seconds; None sets no limit.
        decode: False compares the span with the header alone.

    Returns:
        The header, which the samples have borne out, and their level.

    Raises:
        AudioError: As `read`.
    """
    with opened(path) as (info, decoder):
        first, last = _span(info, start_s, duration_s)
        _check_size(info, first, last, max_duration_s)
        _check_channel(info, channel)
        if not decode:
            return Measured(info=info, level_db=None)
        blocks = _mono(info, decoder, first, last, channel)
        return Measured(info=info, level_db=max(signal_level_db(block, info.sample_rate_hz) for block in blocks))


def write(
    path: Path,
    waveform_S: Waveform,
    sample_rate_hz: int,
    *,
    format: str | None = None,
    subtype: str | None = None,
    compression_level: float | None = None,
) -> None:
    """Write one channel to an audio file; the file appears whole or not at all.

    Args:
        path: Where to; an existing file is replaced.
        waveform_S: Samples, full scale 1.0; integer encodings clip what is beyond.
        sample_rate_hz: Rate.
        format: Container in libsndfile's words; None takes it from the suffix (.wav, .flac, .ogg, .opus, .mp3).
        subtype: Encoding in libsndfile's words; None takes 16 bit, or the usual codec of the suffix.
        compression_level: 0 (largest) to 1 (smallest), for FLAC, Ogg and MP3.

    Raises:
        AudioError: `no_samples`, `non_finite` or `amplitude` of samples, `sample_rate`, or `unwritable`: a format or
            encoding that does not exist.
        ResourceError: The file cannot be written, such as on a full disk.
    """
    check_rate(sample_rate_hz, f"the rate of {path}")
    if waveform_S.ndim != 1 or not waveform_S.size:
        raise AudioError(
            "no_samples", f"{path} would have no samples (array of shape {waveform_S.shape}). Pass one axis of samples."
        )
    check_samples(waveform_S, f"{path} would have", "Repair the waveform first.")
    usual = _WRITABLE.get(path.suffix.lower())
    if format is None and usual is None:
        raise AudioError(
            "unwritable", f"{path}: no audio format has the suffix {path.suffix!r}; use {', '.join(_WRITABLE)}."
        )
    container = format or (usual or ("", ""))[0]
    encoding = subtype or (usual[1] if usual is not None and container == usual[0] else None)
    if not soundfile.check_format(container, encoding):
        raise AudioError(
            "unwritable", f"{path}: format {container!r} with encoding {encoding!r} does not exist. See libsndfile."
        )
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # By descriptor: a Python file object swallows errors of the disk inside the encoder's callback.
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            _encode(fd, waveform_S, sample_rate_hz, container, encoding, compression_level)
            os.fsync(fd)
        finally:
            os.close(fd)
        beside.replace(path)
    except (OSError, soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that all was written
        raise ResourceError(
            f"{path} cannot be written ({error}). It needs about {waveform_S.size * 4:,} bytes. "
            "Free some space or write elsewhere."
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def encode(
    waveform_S: Waveform,
    sample_rate_hz: int,
    *,
    format: str,
    subtype: str,
    compression_level: float | None = None,
) -> bytes:
    """Encode samples in memory. Ogg puts a random number into its pages; other containers give the same bytes again.

    Args:
        waveform_S: Samples, full scale 1.0.
        sample_rate_hz: Rate; the codec has to support it.
        format: Container in libsndfile's words.
        subtype: Encoding in libsndfile's words.
        compression_level: 0 (best) to 1 (smallest), for Ogg and MP3.

    Returns:
        A whole file.
    """
    buffer = io.BytesIO()
    _encode(buffer, waveform_S, sample_rate_hz, format, subtype, compression_level)
    return buffer.getvalue()


def transcode(
    waveform_S: Waveform,
    sample_rate_hz: int,
    *,
    format: str,
    subtype: str,
    compression_level: float | None = None,
) -> Waveform:
    """Encode samples in memory and decode them again, which is what a codec does to a recording.

    The decoders of libsndfile undo their delay (measured: 0 samples for all of `augment.CODECS`); block codecs pad the
    end, which is cut here.

    Args:
        waveform_S: Samples, full scale 1.0.
        sample_rate_hz: Rate; the codec has to support it.
        format: Container in libsndfile's words.
        subtype: Encoding in libsndfile's words.
        compression_level: 0 (best) to 1 (smallest), for Ogg and MP3.

    Returns:
        (S,) float32, as long as the input.
    """
    encoded = encode(waveform_S, sample_rate_hz, format=format, subtype=subtype, compression_level=compression_level)
    result = np.zeros(waveform_S.size, dtype=np.float32)
    with Decoder(io.BytesIO(encoded)) as decoder:
        decoded = decoder.read(waveform_S.size, dtype="float32")
    result[: decoded.size] = decoded
    return result


def _encode(
    file: Any,
    waveform_S: Waveform,
    sample_rate_hz: int,
    container: str,
    encoding: str | None,
    compression_level: float | None,
) -> None:
    with soundfile.SoundFile(
        file,
        "w",
        sample_rate_hz,
        1,
        encoding,
        format=container,
        compression_level=compression_level,
        closefd=False,
    ) as encoder:
        # Vorbis in libsndfile 1.2 keeps a whole call on its stack: hand over a little at a time.
        for start in range(0, waveform_S.size, BLOCK_SAMPLES):
            encoder.write(waveform_S[start : start + BLOCK_SAMPLES])


# --- limits --------------------------------------------------------------------------------------


def _check_channel(info: AudioInfo, channel: int | None) -> None:
    if channel is not None and not 0 <= channel < info.num_channels:
        raise AudioError(
            "channels",
            f"{info.path} has no channel {channel}: it has {info.num_channels}, counted from 0. Correct `channel`.",
        )


def _span(info: AudioInfo, start_s: float, duration_s: float | None) -> tuple[int, int]:
    """First frame and the one after the last of a span, at the file's rate."""
    end_s = info.duration_s if duration_s is None else start_s + duration_s
    good = math.isfinite(start_s) and math.isfinite(end_s) and start_s >= 0
    if not good or (duration_s is not None and duration_s <= 0):
        raise AudioError(
            "span",
            f"{info.path}: a span of {duration_s} s from {start_s} s is not one. "
            "`start_s` is 0 or more, `duration_s` above 0.",
        )
    first = round(start_s * info.sample_rate_hz)
    if first >= info.num_frames or end_s > info.duration_s + max(SPAN_TOLERANCE_S, bearable_s(end_s - start_s)):
        raise AudioError(
            "span",
            f"{info.path} lasts {info.duration_s:.3f} s and the span from {start_s:.3f} s ends at "
            f"{max(start_s, end_s):.3f} s. Correct `start_s` and `duration_s`.",
        )
    last = min(info.num_frames, round(end_s * info.sample_rate_hz))
    if last <= first:
        raise AudioError("span", f"{info.path}: the span from {start_s} s holds no sample. Lengthen `duration_s`.")
    return first, last


def _check_size(info: AudioInfo, first: int, last: int, max_duration_s: float | None) -> None:
    """Refuse what would take too long or too much memory, from the header alone."""
    duration_s = (last - first) / info.sample_rate_hz
    if max_duration_s is not None and duration_s > max_duration_s:
        raise AudioError(
            "too_long",
            f"{info.path}: {duration_s:.0f} s would be decoded in one piece; allowed are {max_duration_s:.0f} s. "
            "Ask for spans of it (`start_s`, `duration_s`), or cut the file.",
        )
    samples = (last - first) * info.num_channels
    if samples <= BOMB_SAMPLES:
        return
    try:
        size = os.stat(info.path).st_size  # noqa: PTH116
    except OSError:  # removed meanwhile: the absolute limit still holds
        size = samples
    if samples > MAX_DECODED_SAMPLES or samples * 2 > BOMB_RATIO * size:
        raise AudioError(
            "bomb",
            f"{info.path} has {size:,} bytes and would decode to {samples:,} samples on {info.num_channels} channels; "
            f"allowed are {MAX_DECODED_SAMPLES:,}, or {BOMB_SAMPLES:,} at {BOMB_RATIO} times the size of the file. "
            "Ask for spans of it, or leave it out.",
        )


# --- decoding ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Span:
    """Samples of a span at the rate asked for, in blocks; never more than `most_samples`."""

    blocks: Iterator[Waveform]
    most_samples: int


@contextmanager
def _span_opened(
    path: Path,
    start_s: float,
    duration_s: float | None,
    channel: int | None,
    sample_rate_hz: int,
    max_duration_s: float | None,
) -> Iterator[_Span]:
    """See `read`."""
    check_rate(sample_rate_hz, "the rate asked for")
    with opened(path) as (info, decoder):
        first, last = _span(info, start_s, duration_s)
        _check_size(info, first, last, max_duration_s)
        _check_channel(info, channel)
        rate = info.sample_rate_hz
        if rate == sample_rate_hz:
            yield _Span(_mono(info, decoder, first, last, channel), last - first)
            return
        # Decoding starts where both rates have a sample, so that cutting the margin off leaves the same grid.
        margin = math.ceil(_MARGIN_SAMPLES * max(1.0, rate / sample_rate_hz))
        grid = rate // math.gcd(rate, sample_rate_hz)
        begin = max(0, first - margin) // grid * grid
        end = min(info.num_frames, last + margin)
        offset = begin * sample_rate_hz // rate
        out_first, out_last = round(start_s * sample_rate_hz), round(last * sample_rate_hz / rate)
        if duration_s is not None and last < info.num_frames:
            out_last = round((start_s + duration_s) * sample_rate_hz)
        made = _resampled(_mono(info, decoder, begin, end, channel), end - begin, rate, sample_rate_hz)
        wanted = _between(info, made, out_first - offset, out_last - offset)
        yield _Span(wanted, max(0, out_last - out_first))


def _between(info: AudioInfo, blocks: Iterator[Waveform], first: int, last: int) -> Iterator[Waveform]:
    """Samples `first` to `last` of all; every block is made, so that a file that breaks off is found out."""
    position = 0
    for block in blocks:
        part = block[max(0, first - position) : max(0, last - position)]
        position += block.size
        if part.size:
            yield _checked(info, part)


def _mono(info: AudioInfo, decoder: Decoder, first: int, last: int, channel: int | None) -> Iterator[Waveform]:
    """Yield frames `first` to `last` of one channel, or of the mean of all, in blocks."""
    block_frames = max(1, BLOCK_SAMPLES // info.num_channels)
    position = first
    try:
        if first:
            decoder.go_to(first)
        while position < last:
            block = decoder.read(min(block_frames, last - position), dtype="float32", always_2d=True)
            if not len(block):
                break
            position += len(block)
            if info.num_channels == 1:
                mono = block[:, 0]
            elif channel is not None:
                mono = np.ascontiguousarray(block[:, channel])
            else:
                # Not a matrix product: BLAS sums in an order that depends on its threads.
                with np.errstate(over="ignore", invalid="ignore"):
                    mono = block.mean(axis=1, dtype=np.float32)
            yield _checked(info, mono)
    except soundfile.LibsndfileError as error:
        raise AudioError(
            "truncated",
            f"{info.path} is cut off or damaged: the decoder stopped after {position / info.sample_rate_hz:.2f} of "
            f"{info.duration_s:.2f} s ({decoder_words(error)}). Fetch the file again, or leave it out.",
        ) from error
    # mpg123 may lose the last frame of a stream whose encoder did not flush; more than one is damage.
    allowed = _MP3_FRAME_SAMPLES if info.format == "MP3" else 0
    if last - position > allowed or position == first:
        raise AudioError(
            "truncated",
            f"{info.path} is cut off or damaged: its header says {info.num_frames:,} samples a channel, and decoding "
            f"ended after {position:,}. Fetch the file again, or leave it out.",
        )


def _resampled(blocks: Iterator[Waveform], num_frames: int, rate_hz: int, to_rate_hz: int) -> Iterator[Waveform]:
    stream = soxr.ResampleStream(rate_hz, to_rate_hz, 1, dtype="float32", quality="HQ")
    done = 0
    for block in blocks:
        done += block.size
        yield stream.resample_chunk(block, last=done >= num_frames)
    if done < num_frames:
        yield stream.resample_chunk(np.empty(0, dtype=np.float32), last=True)


def _fill(result: Waveform, blocks: Iterator[Waveform]) -> int:
    count = 0
    for block in blocks:
        result[count : count + block.size] = block
        count += block.size
    return count


def check_samples(waveform_S: Waveform, subject: str, advice: str) -> None:
    """Refuse samples that are no sound.

    Args:
        waveform_S: Samples, full scale 1.0.
        subject: Begins the message, such as `a.wav has`.
        advice: Ends it.

    Raises:
        AudioError: `non_finite`, or `amplitude`: beyond `MAX_AMPLITUDE`.
    """
    if not waveform_S.size:
        return
    largest = max(float(waveform_S.max()), -float(waveform_S.min()))  # NaN where one sample is
    if not math.isfinite(largest):
        raise AudioError("non_finite", f"{subject} NaN or infinite samples; allowed are finite ones. {advice}")
    if largest > MAX_AMPLITUDE:
        integers = "Integers that were written as floats are to be divided by their full scale, 32768 for 16 bits. "
        raise AudioError(
            "amplitude",
            f"{subject} samples of up to {largest:.3g} times full scale; allowed are {MAX_AMPLITUDE:,.0f} times. "
            f"{integers if largest <= 2**31 else ''}{advice}",
        )


def _checked(info: AudioInfo, samples_S: Waveform) -> Waveform:
    check_samples(samples_S, f"{info.path} ({info.subtype}) has", "Write the file again, or leave it out.")
    return samples_S
