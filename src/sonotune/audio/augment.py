"""Changes to waveforms that a recording might have met: speed, rooms, noise, microphones, codecs, lines, silence.

Every transform is a function `(waveform_S, sample_rate_hz, rng, **limits) -> waveform_S` of numpy arrays that never
writes to its input, and all that is random in it comes from `rng`. `WaveformAugmenter` chains them, with a generator
for each transform of each clip in each epoch, so that worker counts and restarts change nothing. `audio.chains` has
whole recordings by name (a phone call, a voice message, ...): the same transforms in the order of the physics.

The arithmetic is kept free of BLAS, whose sums depend on its number of threads: a loader worker and the main process
have to agree to the last bit. Shape letters: S samples.

Left out on purpose: shifting formants apart from pitch. `speed` moves both, as a shorter vocal tract would, at a
twentieth of the cost of a vocoder and without its artefacts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import soxr
from numpy.typing import NDArray

from sonotune.audio.chains import CHAINS
from sonotune.audio.io import transcode
from sonotune.audio.packets import MAX_LOSS, packet_loss
from sonotune.errors import ConfigError, suggest
from sonotune.runs import generator
from sonotune.types import ChainName, Concealment

Waveform = NDArray[np.float32]
NoiseColour = Literal["white", "pink", "brown"]
CodecName = Literal["mp3", "opus", "vorbis", "gsm", "ulaw", "alaw", "adpcm"]


class Codec(NamedTuple):
    """How libsndfile makes one codec.

    Attributes:
        format: Container.
        subtype: Encoding.
        rates_hz: Rates it is used at, drawn with equal chances.
        levels: Range of its compression level (0 best, 1 smallest); None where it has none.
    """

    format: str
    subtype: str
    rates_hz: tuple[int, ...]
    levels: tuple[float, float] | None


# Bit rates of the levels, measured on band-limited noise at 16 kHz with libsndfile 1.2.2: MP3 56 to 27 kbit/s, Opus 60
# to 10, Vorbis 47 to 32; at 8 kHz about half for MP3 and Vorbis.
CODECS: dict[CodecName, Codec] = {
    "mp3": Codec("MP3", "MPEG_LAYER_III", (8_000, 16_000), (0.5, 0.99)),
    "opus": Codec("OGG", "OPUS", (8_000, 16_000), (0.8, 0.99)),
    "vorbis": Codec("OGG", "VORBIS", (8_000, 16_000), (0.5, 0.99)),
    "gsm": Codec("WAV", "GSM610", (8_000,), None),
    "ulaw": Codec("WAV", "ULAW", (8_000,), None),
    "alaw": Codec("WAV", "ALAW", (8_000,), None),
    "adpcm": Codec("WAV", "MS_ADPCM", (8_000, 16_000), None),
}

_NOISE_SLOPES: dict[NoiseColour, float] = {"white": 0.0, "pink": -0.5, "brown": -1.0}
_NOISE_LOW_HZ = 20.0
_TILT_LOW_HZ = 100.0
_TILT_PAD_SAMPLES = 1_024


def speed(
    waveform_S: Waveform, sample_rate_hz: int, rng: np.random.Generator, *, low: float = 0.9, high: float = 1.1
) -> Waveform:
    """Play faster or slower, pitch and formants along (Ko et al. 2015).

    Args:
        waveform_S: Samples.
        sample_rate_hz: Rate.
        rng: Source of the factor.
        low: Slowest factor.
        high: Fastest factor.

    Returns:
        About S / factor samples: the only transform besides `pad` that changes the length. Word times no longer fit.
    """
    factor = rng.uniform(low, high)
    if not waveform_S.size or factor == 1.0:
        return waveform_S
    faster = soxr.resample(waveform_S, sample_rate_hz * factor, sample_rate_hz, quality="HQ")
    return _float32(faster) if faster.size else waveform_S


def gain(
    waveform_S: Waveform, sample_rate_hz: int, rng: np.random.Generator, *, low_db: float = -6.0, high_db: float = 6.0
) -> Waveform:
    """Make louder or quieter; samples may pass full scale.

    Args:
        waveform_S: Samples.
        sample_rate_hz: Rate, not used.
        rng: Source of the gain.
        low_db: Lowest gain.
        high_db: Highest gain.

    Returns:
        (S,) scaled samples.
    """
    return waveform_S * np.float32(_ratio(rng.uniform(low_db, high_db)))


def noise(
    waveform_S: Waveform,
    sample_rate_hz: int,
    rng: np.random.Generator,
    *,
    snr_low_db: float = 5.0,
    snr_high_db: float = 30.0,
    colour: NoiseColour | None = None,
) -> Waveform:
    """Add steady noise.

    Args:
        waveform_S: Samples.
        sample_rate_hz: Rate.
        rng: Source of the noise, its colour and its level.
        snr_low_db: Lowest ratio of the clip's mean power to the noise's.
        snr_high_db: Highest ratio.
        colour: Slope of the power: white 0, pink -3, brown -6 dB an octave above 20 Hz; None draws one.

    Returns:
        (S,) noisy samples; silence stays silence, since no ratio to it exists.
    """
    snr_db = rng.uniform(snr_low_db, snr_high_db)
    chosen = colour or tuple(_NOISE_SLOPES)[rng.integers(len(_NOISE_SLOPES))]
    power = _power(waveform_S)
    if power == 0.0:
        return waveform_S
    if chosen == "white":
        added = rng.standard_normal(waveform_S.size, dtype=np.float32)
    else:
        # Drawn as a spectrum, which saves one of the two transforms.
        length = _fast_length(waveform_S.size)
        bins = rng.standard_normal((length // 2 + 1, 2), dtype=np.float32).view(np.complex64)[:, 0]
        frequency = np.arange(bins.size, dtype=np.float32) * np.float32(sample_rate_hz / length)
        shape = np.maximum(frequency, np.float32(_NOISE_LOW_HZ))
        bins *= np.float32(1.0) / (np.sqrt(shape) if chosen == "pink" else shape)
        bins[0] = 0.0
        added = _float32(np.fft.irfft(bins, length)[: waveform_S.size])
    own = _power(added)
    if own == 0.0:  # a single sample can be drawn as zero
        return waveform_S
    return _float32(waveform_S + added * np.float32(math.sqrt(power / own) * _ratio(-snr_db)))


def band_limit(
    waveform_S: Waveform,
    sample_rate_hz: int,
    rng: np.random.Generator,
    *,
    source_low_hz: int = 4_000,
    source_high_hz: int = 8_000,
) -> Waveform:
    """Pass through a lower sample rate and back, which leaves nothing above half of it.

    Args:
        waveform_S: Samples.
        sample_rate_hz: Rate.
        rng: Source of the lower rate.
        source_low_hz: Lowest rate.
        source_high_hz: Highest rate; rates at or above the clip's leave it as it is.

    Returns:
        (S,) dull samples, in place in time.
    """
    source_hz = int(rng.integers(source_low_hz, source_high_hz, endpoint=True))
    if source_hz >= sample_rate_hz:
        return waveform_S
    return _through_rate(waveform_S, sample_rate_hz, source_hz, lambda lower: lower)


def codec(
    waveform_S: Waveform,
    sample_rate_hz: int,
    rng: np.random.Generator,
    *,
    names: tuple[CodecName, ...] = tuple(CODECS),
) -> Waveform:
    """Encode and decode with a lossy codec, in memory.

    Args:
        waveform_S: Samples.
        sample_rate_hz: Rate.
        rng: Source of the codec, its rate and its compression.
        names: Codecs to draw from.

    Returns:
        (S,) decoded samples, in place in time. Clips louder than full scale are encoded below it and scaled back.
    """
    chosen = CODECS[names[rng.integers(len(names))]]
    rate_hz = chosen.rates_hz[rng.integers(len(chosen.rates_hz))]
    level = rng.uniform(*chosen.levels) if chosen.levels is not None else None
    peak = float(np.abs(waveform_S).max(initial=0.0))
    if peak == 0.0:
        return waveform_S
    scale = np.float32(max(1.0, peak))

    def encoded(lower: Waveform) -> Waveform:
        return transcode(lower, rate_hz, format=chosen.format, subtype=chosen.subtype, compression_level=level)

    return _through_rate(waveform_S / scale, sample_rate_hz, rate_hz, encoded) * scale


def reverberation(
    waveform_S: Waveform,
    sample_rate_hz: int,
    rng: np.random.Generator,
    *,
    rt60_low_s: float = 0.1,
    rt60_high_s: float = 0.7,
    direct_low_db: float = 0.0,
    direct_high_db: float = 15.0,
) -> Waveform:
    """Put the clip in a room: the direct sound, and noise that decays exponentially after it (Polack 1988).

    Args:
        waveform_S: Samples.
        sample_rate_hz: Rate.
        rng: Source of the room.
        rt60_low_s: Shortest time in which the room's sound falls by 60 dB.
        rt60_high_s: Longest.
        direct_low_db: Lowest power of the direct sound over that of the room.
        direct_high_db: Highest.

    Returns:
        (S,) samples as loud as before; the direct sound stays in place and the tail past the end is cut.
    """
    rt60_s = rng.uniform(rt60_low_s, rt60_high_s)
    direct_db = rng.uniform(direct_low_db, direct_high_db)
    first = round(rng.uniform(0.001, 0.010) * sample_rate_hz)
    tail = rng.standard_normal(max(1, round(rt60_s * sample_rate_hz)), dtype=np.float32)
    power = _power(waveform_S)
    if power == 0.0:
        return waveform_S
    tail *= np.exp(np.linspace(0.0, -math.log(1000.0), tail.size)).astype(np.float32)
    response = np.zeros(first + tail.size, dtype=np.float32)
    response[first:] = tail * np.float32(_ratio(-direct_db) / math.sqrt(max(_power(tail) * tail.size, 1e-20)))
    response[0] = 1.0
    length = _fast_length(waveform_S.size + response.size - 1)
    wet = np.fft.irfft(np.fft.rfft(waveform_S, length) * np.fft.rfft(response, length), length)
    return _with_power(wet[: waveform_S.size], power)


def tilt(waveform_S: Waveform, sample_rate_hz: int, rng: np.random.Generator, *, max_db: float = 6.0) -> Waveform:
    """Tilt the spectrum, as microphones and distances do: straight in dB over log frequency.

    Args:
        waveform_S: Samples.
        sample_rate_hz: Rate.
        rng: Source of the tilt.
        max_db: Largest difference, either way, between 100 Hz and half the sample rate.

    Returns:
        (S,) samples as loud as before, in place in time.
    """
    tilt_db = rng.uniform(-max_db, max_db)
    power = _power(waveform_S)
    octaves = math.log2(max(sample_rate_hz / 2, 2 * _TILT_LOW_HZ) / _TILT_LOW_HZ)
    if power == 0.0:
        return waveform_S
    length = _fast_length(waveform_S.size + _TILT_PAD_SAMPLES)
    frequency = np.arange(length // 2 + 1, dtype=np.float32) * np.float32(sample_rate_hz / length)
    exponent = np.float32(tilt_db / octaves / (20.0 * math.log10(2.0)))
    curve = (np.maximum(frequency, np.float32(_TILT_LOW_HZ)) / np.float32(_TILT_LOW_HZ)) ** exponent
    tilted = np.fft.irfft(np.fft.rfft(waveform_S, length) * curve, length)
    return _with_power(tilted[: waveform_S.size], power)


def pad(waveform_S: Waveform, sample_rate_hz: int, rng: np.random.Generator, *, max_s: float = 0.3) -> Waveform:
    """Put silence before and after.

    Args:
        waveform_S: Samples.
        sample_rate_hz: Rate.
        rng: Source of the two lengths.
        max_s: Longest silence at each end, in seconds.

    Returns:
        A longer clip.
    """
    before, after = (round(share * max_s * sample_rate_hz) for share in rng.random(2))
    padded = np.zeros(before + waveform_S.size + after, dtype=np.float32)
    padded[before : before + waveform_S.size] = waveform_S
    return padded


def clipping(
    waveform_S: Waveform,
    sample_rate_hz: int,
    rng: np.random.Generator,
    *,
    low_share: float = 0.001,
    high_share: float = 0.05,
) -> Waveform:
    """Cut off the peaks, as an overdriven input does, without changing the level of the rest.

    Args:
        waveform_S: Samples.
        sample_rate_hz: Rate, not used.
        rng: Source of the share.
        low_share: Smallest share of samples that is cut.
        high_share: Largest share.

    Returns:
        (S,) clipped samples.
    """
    share = rng.uniform(low_share, high_share)
    if not waveform_S.size:
        return waveform_S
    kept = min(waveform_S.size - 1, int((1.0 - share) * waveform_S.size))
    magnitude = np.abs(waveform_S)
    magnitude.partition(kept)
    ceiling = magnitude[kept]
    return np.clip(waveform_S, -ceiling, ceiling)


def band_pass(
    waveform_S: Waveform,
    sample_rate_hz: int,
    rng: np.random.Generator,
    *,
    low_hz: float = 300.0,
    high_hz: float = 3_400.0,
) -> Waveform:
    """Keep a band, as a telephone line does (ITU-T G.712), with edges of a third of an octave.

    Args:
        waveform_S: Samples.
        sample_rate_hz: Rate.
        rng: Not used: the band is that of the line.
        low_hz: Where the band begins.
        high_hz: Where it ends; at or above half the sample rate nothing is taken away there.

    Returns:
        (S,) samples, in place in time, the level within the band unchanged.
    """
    if not waveform_S.size:
        return waveform_S
    length = _fast_length(waveform_S.size + _TILT_PAD_SAMPLES)
    frequency = np.arange(length // 2 + 1, dtype=np.float32) * np.float32(sample_rate_hz / length)
    octaves = np.log2(np.maximum(frequency, np.float32(1e-3)))
    rise = np.clip((octaves - np.float32(math.log2(low_hz))) * 3 + 1, 0.0, 1.0)
    fall = np.clip((np.float32(math.log2(high_hz)) - octaves) * 3 + 1, 0.0, 1.0)
    curve = np.sin(np.float32(math.pi / 2) * np.minimum(rise, fall))
    kept = np.fft.irfft(np.fft.rfft(waveform_S, length) * curve, length)
    return _float32(kept[: waveform_S.size])


Transform = Callable[..., Waveform]
Limits = Mapping[str, Any]
Step = tuple[str, float, Transform, Limits]
"""Name of a transform within its chain, the chance that a clip gets it, the transform and its limits."""


def chain_steps(name: ChainName) -> tuple[Step, ...]:
    """The steps of a chain, in the order of the physics."""
    known: dict[str, Transform] = {
        "reverb": reverberation,
        "noise": noise,
        "tilt": tilt,
        "gain": gain,
        "clipping": clipping,
        "band_limit": band_limit,
        "band_pass": band_pass,
        "codec": codec,
        "packet_loss": packet_loss,
        "line_gain": gain,
    }
    return tuple((step.name, step.probability, known[step.name], step.limits) for step in CHAINS[name])


def apply_steps(
    steps: Iterable[Step], waveform_S: Waveform, sample_rate_hz: int, *, draw: Callable[[str], np.random.Generator]
) -> Waveform:
    """Put a waveform through transforms, one after the other.

    Args:
        steps: In their order.
        waveform_S: Samples; not written to.
        sample_rate_hz: Rate.
        draw: Name of a step -> its own generator, so that no step moves the draws of another.

    Returns:
        Samples; the input itself where no step was drawn.
    """
    for name, probability, transform, limits in steps:
        if probability <= 0.0:
            continue
        rng = draw(name)
        if rng.random() < probability:
            waveform_S = transform(waveform_S, sample_rate_hz, rng, **limits)
    return waveform_S


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveformAugmenter:
    """The transforms, each with the chance that a clip gets it, and whole chains of them.

    Order: speed, reverberation, tilt, noise, gain, clipping, band limit, codec, packet loss, padding. The tilt before
    the noise is that of the speaker's distance. A microphone tilts the noise as well: that order, and transforms that
    come together or not at all, are those of the `chains` (`audio.chains`). A clip that draws a chain goes through one
    of them, besides speed and padding, and through no other transform. Settings are those of `augmentation` in a run's
    configuration, which says what each one means.

    Raises:
        ConfigError: A probability outside [0, 1], a range whose low end is above its high end, or a chain that is not
            known.
    """

    speed_probability: float = 0.0
    speed_low: float = 0.9
    speed_high: float = 1.1
    gain_probability: float = 0.0
    gain_low_db: float = -6.0
    gain_high_db: float = 6.0
    noise_probability: float = 0.0
    snr_low_db: float = 5.0
    snr_high_db: float = 30.0
    band_limit_probability: float = 0.0
    codec_probability: float = 0.0
    reverb_probability: float = 0.0
    tilt_probability: float = 0.0
    tilt_db: float = 6.0
    pad_probability: float = 0.0
    pad_max_s: float = 0.3
    clipping_probability: float = 0.0
    packet_loss_probability: float = 0.0
    packet_loss_low: float = 0.01
    packet_loss_high: float = 0.1
    packet_burst_low: float = 1.0
    packet_burst_high: float = 5.0
    packet_concealment: Concealment = "repeat"
    chains: tuple[ChainName, ...] = ()
    chain_probability: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, float | int):
                continue
            if not math.isfinite(value) or (field.name.endswith("_probability") and not 0.0 <= value <= 1.0):
                raise ConfigError(f"augmentation.{field.name} is {value}; allowed is a number from 0 to 1. Correct it.")
        for low, high in (
            ("speed_low", "speed_high"),
            ("gain_low_db", "gain_high_db"),
            ("snr_low_db", "snr_high_db"),
            ("packet_loss_low", "packet_loss_high"),
            ("packet_burst_low", "packet_burst_high"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ConfigError(
                    f"augmentation.{low} is {getattr(self, low)}, above augmentation.{high} {getattr(self, high)}. "
                    "Exchange them."
                )
        if self.speed_low <= 0 or self.pad_max_s < 0:
            raise ConfigError(
                f"augmentation.speed_low is {self.speed_low} and augmentation.pad_max_s {self.pad_max_s}; "
                "a speed is above 0 and a silence 0 s or more. Correct them."
            )
        if self.packet_loss_low < 0 or self.packet_loss_high > MAX_LOSS or self.packet_burst_low < 1:
            raise ConfigError(
                f"augmentation.packet_loss_low is {self.packet_loss_low}, augmentation.packet_loss_high "
                f"{self.packet_loss_high} and augmentation.packet_burst_low {self.packet_burst_low}; a loss is from 0 "
                f"to {MAX_LOSS:g}, and a burst has 1 packet or more. Correct them."
            )
        if self.packet_concealment not in get_args(Concealment):
            raise ConfigError(
                f"augmentation.packet_concealment is {self.packet_concealment!r}; allowed are "
                f"{', '.join(get_args(Concealment))}. Take one of them."
            )
        if unknown := [name for name in self.chains if name not in CHAINS]:
            raise ConfigError(
                f"augmentation.chains names {unknown[0]!r}{suggest(unknown[0], CHAINS, '.')} "
                f"Known: {', '.join(CHAINS)}."
            )

    @property
    def active(self) -> bool:
        """Any transform has a chance."""
        in_chains = bool(self.chains) and self.chain_probability > 0.0
        return in_chains or any(probability > 0.0 for _, probability, _, _ in self._steps())

    def __call__(self, waveform_S: Waveform, sample_rate_hz: int, *, seed: int, epoch: int, clip_id: str) -> Waveform:
        """Augment one clip as it is in one epoch.

        Args:
            waveform_S: Samples; not written to.
            sample_rate_hz: Rate.
            seed: The run's seed.
            epoch: Pass over the data.
            clip_id: Identity of the clip.

        Returns:
            Samples, finite; longer or shorter where speed or padding were drawn; the input itself where nothing was.
        """
        chain = self._chain(seed, epoch, clip_id)
        own = self._steps()
        if chain is not None:
            last = next(index for index, step in enumerate(own) if step[0] == "pad")
            own = (*own[:1], *((f"{chain}.{step[0]}", *step[1:]) for step in chain_steps(chain)), *own[last:])
        return apply_steps(own, waveform_S, sample_rate_hz, draw=lambda name: generator(seed, epoch, clip_id, name))

    def _chain(self, seed: int, epoch: int, clip_id: str) -> ChainName | None:
        """The chain that a clip draws, where it draws one."""
        if not self.chains or self.chain_probability <= 0.0:
            return None
        rng = generator(seed, epoch, clip_id, "chain")
        drawn = rng.random() < self.chain_probability
        return self.chains[int(rng.integers(len(self.chains)))] if drawn else None

    def _steps(self) -> tuple[Step, ...]:
        lost = {
            "loss_low": self.packet_loss_low,
            "loss_high": self.packet_loss_high,
            "burst_low": self.packet_burst_low,
            "burst_high": self.packet_burst_high,
            "concealment": self.packet_concealment,
        }
        snr = {"snr_low_db": self.snr_low_db, "snr_high_db": self.snr_high_db}
        return (
            ("speed", self.speed_probability, speed, {"low": self.speed_low, "high": self.speed_high}),
            ("reverb", self.reverb_probability, reverberation, {}),
            ("tilt", self.tilt_probability, tilt, {"max_db": self.tilt_db}),
            ("noise", self.noise_probability, noise, snr),
            ("gain", self.gain_probability, gain, {"low_db": self.gain_low_db, "high_db": self.gain_high_db}),
            ("clipping", self.clipping_probability, clipping, {}),
            ("band_limit", self.band_limit_probability, band_limit, {}),
            ("codec", self.codec_probability, codec, {}),
            ("packet_loss", self.packet_loss_probability, packet_loss, lost),
            ("pad", self.pad_probability, pad, {"max_s": self.pad_max_s}),
        )


def _ratio(decibels: float) -> float:
    return float(10.0 ** (decibels / 20.0))


def _power(waveform_S: Waveform) -> float:
    """Mean square; numpy's pairwise sum, the same for any number of threads."""
    return float(np.square(waveform_S).mean(dtype=np.float64)) if waveform_S.size else 0.0


def _with_power(samples_S: NDArray[np.floating], power: float) -> Waveform:
    waveform_S = _float32(samples_S)
    own = _power(waveform_S)
    return waveform_S * np.float32(math.sqrt(power / own)) if own > 0.0 else waveform_S


def _float32(waveform_S: NDArray[np.floating]) -> Waveform:
    return np.ascontiguousarray(waveform_S, dtype=np.float32)


def _fast_length(least: int) -> int:
    """Smallest of 8, 9, 10, 12, 15 and 16 times a power of two that is at least `least`: quick transforms, even."""
    unit = 1 << max(1, (max(least, 1) - 1).bit_length() - 4)
    return next(unit * factor for factor in (8, 9, 10, 12, 15, 16) if unit * factor >= least)


def _through_rate(
    waveform_S: Waveform, sample_rate_hz: int, rate_hz: int, process: Callable[[Waveform], Waveform]
) -> Waveform:
    """Process at another rate and come back to the same number of samples."""
    if rate_hz == sample_rate_hz:
        return _float32(process(waveform_S))
    lower = soxr.resample(waveform_S, sample_rate_hz, rate_hz, quality="HQ")
    if not lower.size:
        return waveform_S
    back = soxr.resample(process(_float32(lower)), rate_hz, sample_rate_hz, quality="HQ")
    result = np.zeros(waveform_S.size, dtype=np.float32)
    result[: back.size] = back[: waveform_S.size]
    return result
