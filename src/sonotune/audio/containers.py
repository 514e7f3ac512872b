"""What the headers of audio files promise, read without decoding.

libsndfile reads a cut WAV, AIFF, AU, SPHERE or Ogg file as a shorter one and says nothing, and takes the length of an
MP3 that carries no frame count from the bit rate of its first frame (measured with 1.2.2: 8,582 frames of 65,664). So
`io` asks here first which container a file is and whether all the bytes that its header promises are there. Everything
reads by `os.pread`, at most 128 kB at a time, and never moves the position of the descriptor.
"""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from typing import Literal

Container = Literal["RIFF", "AIFF", "AU", "NIST", "FLAC", "OGG", "MP3"]

# A program that writes to a pipe cannot come back to fill in the length and leaves a huge one (ffmpeg 2^32 - 1,
# sox 2^31 - 4096): such a size promises nothing.
_PLACEHOLDER_BYTES = 0x7FFF_F000
_MAX_CHUNKS = 10_000
_OGG_TAIL_BYTES = 2 * 65_536  # a page is at most 65,307 bytes
_SCAN_BYTES = 65_536

_MPEG1_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG2_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MPEG_RATES_HZ = {0: (11_025, 12_000, 8_000), 2: (22_050, 24_000, 16_000), 3: (44_100, 48_000, 32_000)}
_TAG_MARKS = (b"TAG", b"APETAGEX", b"LYRICS", b"ID3", b"3DI")


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A file that ends before its header says.

    Attributes:
        part: What is cut, in words.
        declared_bytes: Length that the header promises.
        present_bytes: Length that is there.
        of_samples: Whether the part holds samples at a fixed number of bytes, of which those present can be read.
    """

    part: str
    declared_bytes: int
    present_bytes: int
    of_samples: bool = False


@dataclass(frozen=True, slots=True)
class MpegStream:
    """Layout of an MP3 file.

    Attributes:
        first_frame: Offset of the first MPEG frame.
        counted: The first frame is a Xing or Info header, so the decoder knows the exact length.
        declared_bytes: Stream length by that header, from `first_frame` on; None where it has none.
    """

    first_frame: int
    counted: bool
    declared_bytes: int | None


def identify(fd: int, size: int) -> Container | None:
    """Tell the container of an open file from its first bytes, past an ID3v2 tag.

    Args:
        fd: Descriptor of a regular file.
        size: Its length in bytes.

    Returns:
        The container, or None for anything that is not audio this project reads.
    """
    head = os.pread(fd, 16, _id3_bytes(fd))
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return "RIFF"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    if head[:4] in (b".snd", b"dns."):
        return "AU"
    if head[:7] == b"NIST_1A":
        return "NIST"
    if head[:4] == b"fLaC":
        return "FLAC"
    if head[:4] == b"OggS":
        return "OGG"
    return "MP3" if mpeg_stream(fd, size) is not None else None


def shortfall(fd: int, size: int, container: Container) -> Shortfall | None:
    """Compare the length that a header promises with the file.

    FLAC and the frame count of MP3 are compared while decoding; their headers count samples, not bytes.

    Args:
        fd: Descriptor of a regular file.
        size: Its length in bytes.
        container: What `identify` said.

    Returns:
        What is missing, or None where nothing is known to be.
    """
    match container:
        case "RIFF":
            return _chunk_shortfall(fd, size, b"data")
        case "AIFF":
            return _chunk_shortfall(fd, size, b"SSND")
        case "AU":
            return _au_shortfall(fd, size)
        case "NIST":
            return _nist_shortfall(fd, size)
        case "OGG":
            return _ogg_shortfall(fd, size)
        case "MP3":
            stream = mpeg_stream(fd, size)
            if stream is None or stream.declared_bytes is None:
                return None
            present = size - stream.first_frame
            # Editors leave the count a little off; the decoder checks the frames exactly.
            if stream.declared_bytes - present > max(512, stream.declared_bytes // 100):
                return Shortfall("the MP3 stream", stream.declared_bytes, present)
            return None
        case "FLAC":
            return None


def _id3_bytes(fd: int) -> int:
    head = os.pread(fd, 10, 0)
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    length = (head[6] & 127) << 21 | (head[7] & 127) << 14 | (head[8] & 127) << 7 | (head[9] & 127)
    return 10 + length + (10 if head[5] & 0x10 else 0)


def _chunk_shortfall(fd: int, size: int, wanted: bytes) -> Shortfall | None:
    """Walk the chunks of a RIFF, RIFX, RF64 or AIFF file to the one that holds the samples."""
    head = os.pread(fd, 12, 0)
    order: Literal["<", ">"] = ">" if head[:4] in (b"FORM", b"RIFX") else "<"
    declared_file = struct.unpack(order + "I", head[4:8])[0] + 8
    data_size_64 = None
    position = 12
    for _ in range(_MAX_CHUNKS):
        chunk = os.pread(fd, 8, position)
        if len(chunk) < 8:
            break
        name, length = chunk[:4], struct.unpack(order + "I", chunk[4:])[0]
        position += 8
        if name == b"ds64":
            data_size_64 = struct.unpack("<Q", os.pread(fd, 16, position)[8:].ljust(8, b"\0"))[0]
        if name == wanted:
            if data_size_64 is not None:
                length = data_size_64
            elif length >= _PLACEHOLDER_BYTES:
                return None
            present = size - position
            part = f"its {wanted.decode()} chunk"
            return Shortfall(part, length, present, of_samples=True) if length > present else None
        position += length + (length & 1)
    if size < declared_file < _PLACEHOLDER_BYTES:
        return Shortfall("the file", declared_file, size)
    return None


def unannounced_bytes(fd: int, container: Container) -> int:
    """Count the bytes behind a WAV header that says that it has no samples.

    Args:
        fd: Descriptor of a regular file.
        container: What `identify` said.

    Returns:
        Bytes from the empty `data` chunk to the end of the file; 0 where it is not empty, or where another one follows.
    """
    if container != "RIFF":
        return 0
    order = ">" if os.pread(fd, 4, 0) == b"RIFX" else "<"
    position = 12
    for _ in range(_MAX_CHUNKS):
        chunk = os.pread(fd, 12, position)
        if len(chunk) < 8:
            return 0
        length = struct.unpack(order + "I", chunk[4:8])[0]
        if chunk[:4] == b"data":
            named = len(chunk) == 12 and chunk[8:].isascii() and chunk[8:].decode("ascii").isprintable()
            return 0 if length or named else os.fstat(fd).st_size - position - 8
        position += 8 + length + (length & 1)
    return 0


def with_data_length(fd: int, size: int, following: int) -> bytes:
    """A WAV file whose header has the length of its samples, for one whose length was never filled in.

    Args:
        fd: Descriptor of a regular file.
        size: Its length in bytes.
        following: What `unannounced_bytes` counted.

    Returns:
        The whole file, with the sizes of its `RIFF` and `data` chunks.
    """
    content = bytearray(os.pread(fd, size, 0))
    order = ">" if content[:4] == b"RIFX" else "<"
    at = size - following - 4
    content[4:8] = struct.pack(order + "I", size - 8)
    content[at : at + 4] = struct.pack(order + "I", following)
    return bytes(content)


def _au_shortfall(fd: int, size: int) -> Shortfall | None:
    head = os.pread(fd, 12, 0)
    if len(head) < 12:
        return Shortfall("its header", 24, len(head))
    offset, length = struct.unpack(">II" if head[:4] == b".snd" else "<II", head[4:])
    if length < _PLACEHOLDER_BYTES and offset + length > size:
        return Shortfall("its sample data", length, max(0, size - offset), of_samples=True)
    return None


def _nist_shortfall(fd: int, size: int) -> Shortfall | None:
    head = os.pread(fd, 16, 0)
    digits = re.search(rb"\d+", head[8:])
    header_bytes = int(digits.group()) if digits else 1024
    text = os.pread(fd, min(header_bytes, _SCAN_BYTES), 0)
    fields = {name: int(value) for name, value in re.findall(rb"(\w+) -i (\d+)", text)}
    length = fields.get(b"sample_count", 0) * fields.get(b"channel_count", 1) * fields.get(b"sample_n_bytes", 0)
    # "embedded-shorten" data are compressed, so the product says nothing about bytes.
    if b"shorten" not in text and header_bytes + length > size:
        return Shortfall("its sample data", length, max(0, size - header_bytes), of_samples=True)
    return None


def _ogg_shortfall(fd: int, size: int) -> Shortfall | None:
    """See whether the last page is whole: the decoder drops a cut page and takes the one before for the end."""
    start = max(0, size - _OGG_TAIL_BYTES)
    tail = os.pread(fd, _OGG_TAIL_BYTES, start)
    page = tail.rfind(b"OggS")
    if page < 0:
        return Shortfall("its last Ogg page", _OGG_TAIL_BYTES, 0)
    present = len(tail) - page
    if present < 27:
        return Shortfall("the header of its last Ogg page", 27, present)
    segments = tail[26 + page]
    lengths = tail[page + 27 : page + 27 + segments]
    declared = 27 + segments + sum(lengths)
    return Shortfall("its last Ogg page", declared, present) if declared > present else None


def ogg_damage(fd: int, size: int) -> str | None:
    """What is wrong with the order of an Ogg file's pages; None where nothing is, or the codec is not known.

    Pages of headers have the position 0, or -1 where no packet ends. The pages of a stream are numbered upwards, and
    positions do not fall. libsndfile 1.2.2 seeks to a page by its position, and ends the process where that misleads.

    Args:
        fd: Descriptor of a regular file.
        size: Its length in bytes.

    Source: RFC 3533, section 6; Vorbis I specification, appendix A.2; RFC 7845, section 3.
    """
    start, packets, last_position, last_number, stream = 0, 0, 0, -1, b""
    while start < size:
        head = os.pread(fd, 27 + 255, start)
        if head[:4] != b"OggS" or len(head) < 27:
            return f"no page begins at byte {start}" if packets > 0 else None
        lengths = head[27 : 27 + head[26]]
        if start == 0:
            codec = os.pread(fd, 8, 27 + head[26])
            packets = 3 if codec[:7] == b"\x01vorbis" else 2 if codec == b"OpusHead" else 0
            if not packets:
                return None
            stream = head[14:18]
        if head[14:18] == stream:
            position, number = struct.unpack("<q4xI", head[6:22])
            if packets > 0 and position not in (0, -1):
                return f"the page at byte {start} has position {position}"
            if number <= last_number or -1 != position < last_position:
                return f"the page at byte {start}, number {number}, is out of order"
            last_position, last_number = max(position, last_position), number
            packets -= sum(length < 255 for length in lengths)
        start += 27 + head[26] + sum(lengths)
    return None


def ogg_last_page_start(fd: int, size: int) -> int:
    """Find the sample with which the last page of an Ogg Vorbis file begins.

    libsndfile 1.2.2 misplaces a seek into that page by what its end trims (measured: 96 to 435 samples).

    Args:
        fd: Descriptor of a regular file.
        size: Its length in bytes.

    Returns:
        The sample, or 0 where the file's end does not tell.
    """
    tail = os.pread(fd, _OGG_TAIL_BYTES, max(0, size - _OGG_TAIL_BYTES))
    last = tail.rfind(b"OggS")
    page = tail.rfind(b"OggS", 0, max(last, 0))
    while page >= 0:
        (position,) = struct.unpack("<q", tail[page + 6 : page + 14])
        if position >= 0:  # -1 on a page where no packet ends
            return int(position)
        page = tail.rfind(b"OggS", 0, page)
    return 0


# --- MP3 -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Frame:
    size: int
    samples: int
    side_bytes: int


def _frame(head: bytes) -> _Frame | None:
    """Read the four bytes of an MPEG layer III frame header; None where they are not one."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = (head[1] >> 3) & 3, (head[1] >> 1) & 3
    rate_index, bitrate_index = (head[2] >> 2) & 3, head[2] >> 4
    if version == 1 or layer != 1 or rate_index == 3 or bitrate_index in (0, 15):
        return None
    newest = version == 3
    samples = 1152 if newest else 576
    kbps = (_MPEG1_KBPS if newest else _MPEG2_KBPS)[bitrate_index]
    mono = head[3] >> 6 == 3
    side_bytes = (17 if mono else 32) if newest else (9 if mono else 17)
    size = samples * kbps * 125 // _MPEG_RATES_HZ[version][rate_index] + ((head[2] >> 1) & 1)
    return _Frame(size, samples, side_bytes)


def mpeg_stream(fd: int, size: int) -> MpegStream | None:
    """Find the first frame of an MP3 file and the frame count that may sit in it.

    Args:
        fd: Descriptor of a regular file.
        size: Its length in bytes.

    Returns:
        The layout, or None where the file does not start with MPEG layer III frames.
    """
    tag_bytes = _id3_bytes(fd)
    window = os.pread(fd, _SCAN_BYTES, tag_bytes)
    # Some taggers pad after the tag; without a tag the stream has to begin at once, or any file would match.
    offset = len(window) - len(window.lstrip(b"\0")) if tag_bytes else 0
    frame = _frame(window[offset : offset + 4])
    if frame is None:
        return None
    following = tag_bytes + offset + frame.size
    if following + 4 <= size and _frame(os.pread(fd, 4, following)) is None:
        return None
    tag = window.find(b"Xing", offset, offset + 64)
    tag = window.find(b"Info", offset, offset + 64) if tag < 0 else tag
    if tag < 0 or len(window) < tag + 16:
        return MpegStream(tag_bytes + offset, counted=False, declared_bytes=None)
    flags, frames, length = struct.unpack(">III", window[tag + 4 : tag + 16])
    counted = bool(flags & 1) and frames > 0
    declared = length if flags & 3 == 3 and length > 0 else None
    return MpegStream(tag_bytes + offset, counted=counted, declared_bytes=declared)


def count_mpeg_frames(fd: int, stream: MpegStream, size: int) -> tuple[int, int | None]:
    """Count the frames of an MP3 file by walking their headers, about 2 us each.

    Args:
        fd: Descriptor of a regular file.
        stream: Its layout.
        size: Length of the file in bytes.

    Returns:
        Number of whole frames, and the offset where something else than a frame or a closing tag interrupts them;
        None where nothing does. A cut last frame is not counted.
    """
    count, position = 0, stream.first_frame
    while (frame := _frame(os.pread(fd, 4, position))) is not None and position + frame.size <= size:
        count += 1
        position += frame.size
    rest = os.pread(fd, 4096, position)
    at_end = frame is not None or len(rest) < 4 or rest.startswith(_TAG_MARKS) or not rest.strip(b"\0")
    return count, None if at_end else position


def with_frame_count(fd: int, stream: MpegStream, num_frames: int, size: int) -> bytes:
    """Put a Xing header before the frames of an MP3 file that has none, so that the decoder knows its length.

    Args:
        fd: Descriptor of a regular file.
        stream: Its layout.
        num_frames: What `count_mpeg_frames` counted.
        size: Length of the file in bytes.

    Returns:
        The whole file with the header in front.
    """
    body = os.pread(fd, size - stream.first_frame, stream.first_frame)
    for bitrate_index in range(1, 15):
        # No CRC, no padding, and the lowest bit rate whose frame has room for the header.
        head = bytes([body[0], body[1] | 1, bitrate_index << 4 | body[2] & 0x0C, body[3]])
        frame = _frame(head)
        if frame is not None and frame.size >= 4 + frame.side_bytes + 16:
            tag = b"Xing" + struct.pack(">III", 3, num_frames, len(body) + frame.size)
            return (head + bytes(frame.side_bytes) + tag).ljust(frame.size, b"\0") + body
    message = "no MPEG frame size holds a Xing header"  # the highest bit rate always does
    raise AssertionError(message)


def samples_per_frame(fd: int, stream: MpegStream) -> int:
    """Samples of one channel in each MPEG frame: 1152, or 576 below 32 kHz."""
    frame = _frame(os.pread(fd, 4, stream.first_frame))
    return 1152 if frame is None else frame.samples
