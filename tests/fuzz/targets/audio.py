"""Audio containers: damaged as bytes, and by the grammar of each, with checksums made right again."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from harness import Files, Target, attempt
from mutations import INTEGERS, damage_bytes, damage_folder

RATE_HZ: Final = 8_000
SAMPLES: Final = 2_000


def _check(folder: Path) -> None:
    """Header, whole file at another rate, a span of one channel, and what `data.check` does: as training does."""
    import numpy as np

    from sonotune.audio.io import measure, probe, read
    from sonotune.data.audio_checks import check_audio
    from sonotune.data.manifest import digest, fill_durations
    from sonotune.types import Clip

    for path in sorted(folder.iterdir()):
        info = attempt(probe, path)
        for sample_rate_hz in (16_000, info.sample_rate_hz if info else 8_000):
            whole = attempt(read, path, sample_rate_hz=sample_rate_hz)
            if whole is not None:
                assert info is not None, "samples of a file whose header is refused"
                assert whole.ndim == 1, whole.shape
                assert whole.dtype == np.float32, whole.dtype
                assert np.isfinite(whole).all(), "samples that are no numbers"
                expected = info.duration_s * sample_rate_hz
                slack = 2 + (1152 * sample_rate_hz / info.sample_rate_hz if info.format == "MP3" else 0)
                assert abs(whole.size - expected) <= slack, f"{whole.size} samples of {expected:.1f}"
        start_s = info.duration_s / 3 if info else 0.05
        attempt(read, path, start_s=start_s, duration_s=max(start_s / 2, 1e-4), channel=0)
        attempt(measure, path)
        clips = [Clip(id="a", path=path, start_s=0.0, duration_s=0.0)]
        kept, findings = check_audio(fill_durations(clips), workers=1)
        assert kept or findings
        digest(clips)


# --- encoding ------------------------------------------------------------------------------------


def _encoded(container: str, subtype: str, *, channels: int = 1, rate_hz: int = RATE_HZ, endian: str = "FILE") -> bytes:
    """A tone in noise that is the same everywhere."""
    import numpy as np
    import soundfile

    noise = np.random.default_rng(7).standard_normal((SAMPLES, channels)) * 0.05
    tone = 0.4 * np.sin(2 * np.pi * 440 * np.arange(SAMPLES)[:, None] / rate_hz)
    buffer = io.BytesIO()
    soundfile.write(buffer, tone + noise, rate_hz, format=container, subtype=subtype, endian=endian)
    return buffer.getvalue()


def _file(name: str, data: bytes) -> Files:
    return {name: data}


# --- WAV -----------------------------------------------------------------------------------------


def _wav_seeds() -> list[Files]:
    usual = [
        _encoded("WAV", subtype)
        for subtype in (
            "PCM_16",
            "PCM_U8",
            "PCM_24",
            "FLOAT",
            "DOUBLE",
            "ULAW",
            "ALAW",
            "IMA_ADPCM",
            "MS_ADPCM",
            "GSM610",
        )
    ]
    others = [
        _encoded("WAV", "PCM_16", channels=2),
        _encoded("WAV", "PCM_16", endian="BIG"),
        _encoded("WAVEX", "PCM_16", channels=6),
        _encoded("WAVEX", "FLOAT"),
        _encoded("RF64", "PCM_16"),
        _rf64(_encoded("WAV", "PCM_16")),
        _streamed(_encoded("WAV", "PCM_16"), 8, 0),
        _streamed(_encoded("WAV", "PCM_16"), 0xFFFF_FFFF, 0xFFFF_FFFF),
    ]
    return [_file("a.wav", data) for data in (*usual, *others)]


def _rf64(wav: bytes) -> bytes:
    """As BWF editors write files beyond 4 GB: 32-bit sizes that say nothing, and the true ones in `ds64`."""
    chunks = [chunk for chunk in _chunks(wav) if chunk[0] in (b"fmt ", b"data")]
    size = len(dict(chunks)[b"data"])
    body = _join([(b"ds64", struct.pack("<QQQI", len(wav) + 28, size, size // 2, 0)), *chunks])
    return b"RF64" + b"\xff" * 4 + b"WAVE" + body.replace(b"data" + struct.pack("<I", size), b"data" + b"\xff" * 4)


def _streamed(wav: bytes, file_bytes: int, data_bytes: int) -> bytes:
    """As a program leaves it that writes to a pipe."""
    at = wav.index(b"data")
    return wav[:4] + struct.pack("<I", file_bytes) + wav[8 : at + 4] + struct.pack("<I", data_bytes) + wav[at + 8 :]


def _chunks(wav: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 12
    while at + 8 <= len(wav) and len(found) < 100:
        name, length = wav[at : at + 4], struct.unpack("<I", wav[at + 4 : at + 8])[0]
        found.append((name, wav[at + 8 : at + 8 + length]))
        at += 8 + length + (length & 1)
    return found


def _join(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    return b"".join(name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1) for name, data in chunks)


_FORMATS: Final = (0, 1, 2, 3, 6, 7, 0x11, 0x31, 0x50, 0x55, 0x161, 0xFFFE, 0xFFFF)


def _damage_wav(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.5 or data[:4] not in (b"RIFF", b"RF64"):
        return damage_bytes(
            rng, data, (b"RIFF", b"RIFX", b"RF64", b"WAVE", b"data", b"fmt ", b"ds64", b"LIST", b"fact")
        )
    chunks = _chunks(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not chunks:
            break
        at = rng.randrange(len(chunks))
        name, content = chunks[at]
        match rng.randrange(8):
            case 0:
                chunks.insert(rng.randrange(len(chunks) + 1), (name, content))
            case 1:
                del chunks[at]
            case 2:
                rng.shuffle(chunks)
            case 3:
                extra = (
                    rng.choice((b"LIST", b"id3 ", b"bext", b"ds64", b"fact", b"JUNK", b"\0\0\0\0")),
                    rng.randbytes(28),
                )
                chunks.insert(at, extra)
            case 4:
                chunks[at] = (name, content[: rng.randrange(len(content) + 1)])
            case 5 | 6:
                chunks = [(one, _damage_fmt(rng, held) if one == b"fmt " else held) for one, held in chunks]
            case _:
                chunks[at] = (name, damage_bytes(rng, content))
    body = _join(chunks)
    size = rng.choice((len(body) + 4, len(body) + 4, len(body), 0, 0xFFFF_FFFF, 0x7FFF_FFFF, rng.getrandbits(32)))
    wav = data[:4] + struct.pack("<I", size) + b"WAVE" + body
    at = wav.find(b"data")
    if at >= 0 and rng.random() < 0.4:
        length = rng.choice((*INTEGERS, len(wav) - at - 8, len(wav) - at - 7)) % 2**32
        wav = wav[: at + 4] + struct.pack("<I", length) + wav[at + 8 :]
    return wav


def _damage_fmt(rng: random.Random, content: bytes) -> bytes:
    """Fields of the format: kind, channels, rate, bytes a second, bytes a frame, bits."""
    if len(content) < 16:
        return content
    fields = list(struct.unpack("<HHIIHH", content[:16]))
    at = rng.randrange(6)
    usual = {
        0: _FORMATS,
        1: (0, 1, 2, 6, 64, 65, 1024, 65535),
        2: (0, 1, 999, 1000, 44_100, 384_000, 384_001, 2**32 - 1),
    }
    usual |= {5: (0, 1, 4, 8, 12, 16, 20, 24, 32, 33, 64, 65535)}
    fields[at] = rng.choice(usual.get(at, INTEGERS)) % (2**32 if at in (2, 3) else 2**16)
    return struct.pack("<HHIIHH", *fields) + content[16:]


# --- FLAC ----------------------------------------------------------------------------------------


def _flac_seeds() -> list[Files]:
    kinds = [_encoded("FLAC", subtype, channels=channels) for subtype in ("PCM_16", "PCM_24") for channels in (1, 2)]
    return [_file("a.flac", data) for data in (*kinds, _encoded("OGG", "FLAC") if _has_ogg_flac() else kinds[0])]


def _has_ogg_flac() -> bool:
    import soundfile

    return "FLAC" in soundfile.available_subtypes("OGG")


def _damage_flac(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.5 or data[:4] != b"fLaC":
        return damage_bytes(rng, data, (b"fLaC", b"\xff\xf8", b"\xff\xf9", b"\x84\0\0\x28"))
    info = int.from_bytes(data[18:26], "big")  # rate (20 bits), channels (3), bits (5), samples (36)
    rate, channels, bits, samples = info >> 44, info >> 41 & 7, info >> 36 & 31, info & (2**36 - 1)
    match rng.randrange(6):
        case 0:
            rate = rng.choice((0, 1, 999, 44_100, 655_350, 2**20 - 1))
        case 1:
            channels = rng.randrange(8)
        case 2:
            bits = rng.randrange(32)
        case 3:
            samples = rng.choice((0, 1, samples - 1, samples + 1, samples * 2, 2**31, 2**36 - 1))
        case 4:  # the length of a block of metadata
            return data[:4] + bytes([rng.choice((0, 1, 4, 6, 127, 128, 255))]) + rng.randbytes(3) + data[8:]
        case _:
            return data[:4] + b"\x06" + struct.pack(">I", 40)[1:] + rng.randbytes(40) + data[4:]
    info = rate << 44 | channels << 41 | bits << 36 | samples
    return data[:18] + info.to_bytes(8, "big") + data[26:]


# --- Ogg -----------------------------------------------------------------------------------------


def _ogg_seeds() -> list[Files]:
    streams = [_encoded("OGG", "VORBIS"), _encoded("OGG", "OPUS"), _encoded("OGG", "VORBIS", channels=2)]
    # The serial number that libsndfile draws by the clock would make other cases in every process.
    return [_file("a.ogg", _with_serial(data, 4711)) for data in streams]


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C1_1DB7 if value & 0x8000_0000 else value << 1) & 0xFFFF_FFFF
        table.append(value)
    return table


_CRC: Final = _crc_table()


def _signed(page: bytes) -> bytes:
    """A page with the checksum that it must have."""
    value, bare = 0, page[:22] + b"\0" * 4 + page[26:]
    for byte in bare:
        value = (value << 8 & 0xFFFF_FFFF) ^ _CRC[(value >> 24) ^ byte]
    return page[:22] + struct.pack("<I", value) + page[26:]


def _pages(ogg: bytes) -> list[bytes]:
    """The pages of an Ogg file; what is between them stays with the page before."""
    starts = [at for at in range(len(ogg)) if ogg.startswith(b"OggS", at)]
    return [ogg[start:end] for start, end in zip(starts, [*starts[1:], len(ogg)], strict=True)]


def _with_serial(ogg: bytes, serial: int) -> bytes:
    return b"".join(_signed(page[:14] + struct.pack("<I", serial) + page[18:]) for page in _pages(ogg))


def _damage_ogg(rng: random.Random, data: bytes) -> bytes:
    pages = _pages(data)
    if not pages or rng.random() < 0.35:
        return damage_bytes(rng, data, (b"OggS", b"\x01vorbis", b"OpusHead", b"\x7fFLAC"))
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(pages))
        page = pages[at]
        match rng.randrange(9):
            case 0 | 1:  # the time at which the page ends
                value = rng.choice((*INTEGERS, 1999, 2001, 48_000 * 7200)) % 2**64
                page = page[:6] + struct.pack("<Q", value) + page[14:]
            case 2:  # flags, serial number, number of the page
                where = rng.choice((5, 14, 18))
                page = page[:where] + bytes([rng.getrandbits(8)]) + page[where + 1 :]
            case 3:  # how long its packets are
                page = page[:26] + bytes([rng.getrandbits(8)]) + page[27:]
            case 4 | 5 | 6:  # what they hold, such as the header of the codec
                page = page[:27] + damage_bytes(rng, page[27:])
            case 7:
                pages.insert(rng.randrange(len(pages) + 1), page)
                continue
            case _:
                del pages[at]
                if not pages:
                    return data[:40]
                continue
        pages[at] = _signed(page) if len(page) > 26 else page
    return b"".join(pages)


# --- MP3 -----------------------------------------------------------------------------------------


def _mp3_seeds() -> list[Files]:
    counted = _encoded("MP3", "MPEG_LAYER_III")
    stereo = _encoded("MP3", "MPEG_LAYER_III", channels=2, rate_hz=44_100)
    return [
        _file("a.mp3", data)
        for data in (counted, stereo, _uncounted(counted), _tagged(counted), _tagged(_uncounted(counted)))
    ]


def _uncounted(mp3: bytes) -> bytes:
    """Without the frame that says how many there are: as a recorder that streams leaves it."""
    at = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    following = mp3.find(mp3[:2], 4)
    return mp3[following:] if at > 0 and following > 0 else mp3


def _tagged(mp3: bytes) -> bytes:
    return b"ID3\x04\0\0\0\0\0\x14" + bytes(20) + mp3


def _damage_mp3(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.6:
        return damage_bytes(
            rng, data, (b"\xff\xfb", b"\xff\xe3", b"ID3", b"Xing", b"Info", b"TAG", b"\xff\xfb\x90\x64")
        )
    at = max(data.find(b"Xing"), data.find(b"Info"))
    if at >= 0 and rng.random() < 0.5:  # flags, frames and bytes of the whole
        where = at + rng.choice((4, 8, 12))
        return data[:where] + struct.pack(">I", rng.choice(INTEGERS) % 2**32) + data[where + 4 :]
    if data[:3] == b"ID3":
        return data[:6] + rng.randbytes(4) + data[10:]
    where = rng.choice((1, 2, 3))
    return data[:where] + bytes([rng.getrandbits(8)]) + data[where + 1 :]


# --- others --------------------------------------------------------------------------------------


def _other_seeds() -> list[Files]:
    kinds = (("AIFF", "PCM_16"), ("AIFF", "FLOAT"), ("AU", "PCM_16"), ("AU", "ULAW"), ("NIST", "PCM_16"))
    known = [_file("a.au", _encoded(container, subtype)) for container, subtype in kinds]
    return [*known, _file("a.au", _encoded("AU", "PCM_16", endian="LITTLE"))]


_STARTS: Final = (
    *(b"RIFF\0\0\0\0WAVE", b"RF64\xff\xff\xff\xffWAVEds64", b"FORM\0\0\0\0AIFF", b"FORM\0\0\0\0AIFC", b".snd", b"dns."),
    *(
        b"NIST_1A\n   1024\n",
        b"fLaC",
        b"OggS",
        b"ID3\x04\0\0\0\0\0\0\xff\xfb\x90\x64",
        b"\xff\xfb\x90\x64",
        b"\xff\xf3\x40\xc4",
    ),
    *(b"caff\0\1\0\0", b"riff\x2e\x91\xcf\x11", b"\x1aE\xdf\xa3", b"\0\0\0\x20ftypM4A ", b"#!AMR\n", b""),
)


def _random_bytes(rng: random.Random, files: Files) -> Files:
    """Bytes that no encoder wrote, behind the first ones of a container."""
    body = rng.randbytes(rng.choice((0, 1, 3, 12, 50, 400, 5000, 70_000)))
    if rng.random() < 0.3:
        body = bytes(len(body))
    return {name: rng.choice(_STARTS) + body for name in files}


def _target(name: str, seeds: Callable[[], list[Files]], damage: Callable[[random.Random, bytes], bytes]) -> Target:
    return Target(
        name=name,
        seeds=seeds,
        mutate=lambda rng, files: damage_folder(rng, files, {"": damage}),
        check=_check,
        weight=3.0,
    )


TARGETS: Final = (
    _target("wav", _wav_seeds, _damage_wav),
    _target("flac", _flac_seeds, _damage_flac),
    _target("ogg", _ogg_seeds, _damage_ogg),
    _target("mp3", _mp3_seeds, _damage_mp3),
    _target("other-audio", _other_seeds, damage_bytes),
    Target(
        name="random",
        seeds=lambda: [_file("a", _encoded("WAV", "PCM_16"))],
        mutate=_random_bytes,
        check=_check,
        weight=1.0,
    ),
)
