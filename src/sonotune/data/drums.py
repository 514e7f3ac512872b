"""Drums made of numbers: kits, rooms, and the sound of strokes. Pure numpy and scipy, no recordings.

A stroke is three sounds. The *membrane* rings in the modes of an ideal circular drumhead, excited by how far from its
centre the stick lands; each mode decays on its own and starts a little sharp, because the blow stretches the head. The
*wires* below it rattle: band-limited noise under an exponential. The *stick* clicks: a few milliseconds of a damped
sine and noise. The hands differ in where they land, how hard they are and what their stick sounds like.

Shape letters: S samples, H hits, M modes, N samples of one stroke.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from sonotune.audio import augment
from sonotune.runs import generator

Hand = Literal["R", "L"]
Waveform = NDArray[np.float32]

# Zeros of the Bessel functions J_m: the modes of a circular membrane (m nodal diameters), lowest first.
_ORDERS_M: Final = np.array([0, 1, 2, 0, 3, 1, 4, 2])
_ZEROS_M: Final = np.array([2.4048, 3.8317, 5.1356, 5.5201, 6.3802, 7.0156, 7.5883, 8.4172])
_CLICK_S: Final = 0.008
# RMS of wires under a blow of velocity 1, which peaks near 1 as the head does.
_WIRES_GAIN: Final = 0.4
# A stroke is cut where its slowest part is 52 dB down.
_RINGING_DECAYS: Final = 6.0
# Of the left hand against the right: another stick, lighter in the blow.
_LEFT_CLICK: Final = 0.80
_LEFT_VELOCITY: Final = 0.92


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """One instrument and how it is struck.

    Attributes:
        split: The only split that hears it.
        fundamental_hz: Lowest mode.
        decay_s: Time in which the lowest mode falls by 1/e.
        spread: Exponent of the modes' ratios; 1 is an ideal membrane, less a head loaded by air, more a stiff plate.
        brightness: Gain from each mode to the next higher one, for a hard blow.
        tone: Level of the membrane.
        wires: Level of the wires' noise.
        wires_hz: Band of the wires' noise.
        wires_decay_s: Time in which the wires fall by 1/e.
        click: Level of the stick.
        click_hz: Pitch of the stick.
        bend: How much sharper a blow of velocity 1 starts, as a share of the pitch.
        right: Where the right hand lands, as a share of the radius.
        left: Where the left hand lands.
    """

    split: str
    fundamental_hz: float
    decay_s: float
    spread: float = 0.95
    brightness: float = 0.75
    tone: float = 1.0
    wires: float = 0.0
    wires_hz: tuple[float, float] = (1500.0, 7000.0)
    wires_decay_s: float = 0.06
    click: float = 0.3
    click_hz: float = 3500.0
    bend: float = 0.05
    right: float = 0.10
    left: float = 0.50


KITS: Final[Mapping[str, Kit]] = {
    # snare drums: wires over a short head
    "maple_snare": Kit(split="train", fundamental_hz=190, decay_s=0.050, wires=0.55, wires_decay_s=0.060),
    "deep_snare": Kit(
        split="train",
        fundamental_hz=150,
        decay_s=0.085,
        wires=0.50,
        wires_decay_s=0.090,
        wires_hz=(900, 5000),
        brightness=0.65,
    ),
    "piccolo_snare": Kit(
        split="train",
        fundamental_hz=330,
        decay_s=0.030,
        wires=0.60,
        wires_decay_s=0.035,
        wires_hz=(2500, 7800),
        brightness=0.85,
    ),
    "loose_snare": Kit(
        split="train",
        fundamental_hz=170,
        decay_s=0.060,
        wires=0.90,
        wires_decay_s=0.150,
        wires_hz=(1000, 6000),
        tone=0.7,
    ),
    "dry_snare": Kit(
        split="train",
        fundamental_hz=215,
        decay_s=0.018,
        wires=0.35,
        wires_decay_s=0.025,
        wires_hz=(1200, 4500),
        click=0.2,
    ),
    # pads: hardly any head, mostly stick
    "practice_pad": Kit(
        split="train", fundamental_hz=410, decay_s=0.012, click=0.9, click_hz=2600, brightness=0.6, bend=0.0
    ),
    "mesh_pad": Kit(split="train", fundamental_hz=120, decay_s=0.045, click=0.25, brightness=0.45, bend=0.12),
    # heads without wires: over their long ringing the stick tells strokes apart
    "floor_tom": Kit(split="train", fundamental_hz=82, decay_s=0.160, click=0.35, brightness=0.6, bend=0.10),
    "timbale": Kit(split="train", fundamental_hz=300, decay_s=0.140, click=0.4, click_hz=4500, brightness=0.92),
    "wood_block": Kit(
        split="train", fundamental_hz=780, decay_s=0.014, spread=1.15, click=0.5, click_hz=5200, brightness=0.5, bend=0
    ),
    # heard in evaluation only
    "brass_snare": Kit(
        split="eval",
        fundamental_hz=235,
        decay_s=0.075,
        wires=0.50,
        wires_decay_s=0.050,
        wires_hz=(2000, 7500),
        brightness=0.90,
    ),
    "rubber_pad": Kit(
        split="eval", fundamental_hz=260, decay_s=0.020, click=0.5, click_hz=1800, brightness=0.5, bend=0.02
    ),
    "rack_tom": Kit(split="eval", fundamental_hz=135, decay_s=0.120, click=0.4, brightness=0.7, bend=0.08),
    # heard in the test only
    "steel_snare": Kit(
        split="test",
        fundamental_hz=265,
        decay_s=0.045,
        wires=0.75,
        wires_decay_s=0.075,
        wires_hz=(1800, 7800),
        click=0.5,
    ),
    "marching_snare": Kit(
        split="test",
        fundamental_hz=370,
        decay_s=0.016,
        wires=0.45,
        wires_decay_s=0.022,
        wires_hz=(2200, 7000),
        click=0.8,
    ),
    "bongo": Kit(split="test", fundamental_hz=440, decay_s=0.055, click=0.3, brightness=0.7, bend=0.04, left=0.60),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Where the drum stands, and what it is recorded with.

    Attributes:
        rt60_s: Time in which the room's sound falls by 60 dB.
        direct_db: Power of the drum itself over that of the room.
        noise_db: Power of the whole clip over that of the room's noise.
        colour: Colour of the noise.
        source_hz: Sample rate of the recorder.
    """

    rt60_s: float
    direct_db: float
    noise_db: float
    colour: augment.NoiseColour
    source_hz: int = 16000


ROOMS: Final[Mapping[str, Room]] = {
    "studio": Room(rt60_s=0.12, direct_db=18.0, noise_db=55.0, colour="white"),
    "bedroom": Room(rt60_s=0.30, direct_db=11.0, noise_db=40.0, colour="pink"),
    "practice_room": Room(rt60_s=0.22, direct_db=6.0, noise_db=35.0, colour="brown"),
    "garage": Room(rt60_s=0.60, direct_db=5.0, noise_db=30.0, colour="pink"),
    "gym": Room(rt60_s=1.30, direct_db=3.0, noise_db=30.0, colour="pink"),
    "outdoors": Room(rt60_s=0.06, direct_db=22.0, noise_db=22.0, colour="brown"),
    "phone": Room(rt60_s=0.35, direct_db=8.0, noise_db=28.0, colour="white", source_hz=8000),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One contact of a stick with the head.

    Attributes:
        time_s: When, from the start of the clip.
        velocity: How hard, 0 to about 1; the amplitude follows it.
        hand: Which stick.
    """

    time_s: float
    velocity: float
    hand: Hand


def play(
    hits: Sequence[Hit], kit: Kit, num_samples: int, sample_rate_hz: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Sound of a kit, dry.

    Args:
        hits: Strokes, any order, each within the clip.
        kit: What they strike.
        num_samples: Length of the clip.
        sample_rate_hz: Rate.
        rng: Source of the wires' and the stick's noise.

    Returns:
        Waveform (S,); a blow of velocity 1 peaks near 1.
    """
    out_S = np.zeros(num_samples)
    blows_S = np.zeros(num_samples)
    modes = {"R": _Modes(kit, kit.right, sample_rate_hz), "L": _Modes(kit, kit.left, sample_rate_hz)}
    for hit in hits:
        first = round(hit.time_s * sample_rate_hz)
        velocity = hit.velocity * (_LEFT_VELOCITY if hit.hand == "L" else 1.0)
        blows_S[first] += velocity
        for sound_N in (modes[hit.hand].ring(velocity), _stick(kit, hit.hand, velocity, sample_rate_hz, rng)):
            part_S = out_S[first : first + sound_N.size]
            part_S += sound_N[: part_S.size]
    if kit.wires:
        out_S += kit.wires * _wires(blows_S, kit, sample_rate_hz, rng)
    return out_S


class _Modes:
    """The ringing head of a kit struck in one place; what every stroke there shares is computed once."""

    def __init__(self, kit: Kit, radius: float, sample_rate_hz: int) -> None:
        ratios_M = (_ZEROS_M / _ZEROS_M[0]) ** kit.spread
        heard = ratios_M * kit.fundamental_hz < 0.45 * sample_rate_hz
        self._kit = kit
        self._hz_M1 = (ratios_M * kit.fundamental_hz)[heard, None]
        # How far a mode moves where the stick lands. Off the centre the rim's modes sound and the lowest is weaker.
        self._reach_M = np.abs(special.jv(_ORDERS_M, _ZEROS_M * radius))[heard]
        self._time_N = np.arange(round(_RINGING_DECAYS * kit.decay_s * sample_rate_hz)) / sample_rate_hz
        self._decay_MN = np.exp(-self._time_N * ratios_M[heard, None] / kit.decay_s)

    def ring(self, velocity: float) -> NDArray[np.float64]:
        """Membrane (N,) after a blow: softer ones are darker and bend less."""
        kit = self._kit
        # Ten milliseconds of bend, or less where the head stops before.
        bend_s = min(0.010, kit.decay_s)
        warped_N = self._time_N + kit.bend * velocity * bend_s * (1 - np.exp(-self._time_N / bend_s))
        order_M = np.arange(self._reach_M.size) * (1.5 - 0.5 * min(velocity, 1.0))
        gains_M = self._reach_M * kit.brightness**order_M
        gains_M *= kit.tone * velocity / gains_M.sum()
        # Without einsum or @: their sums may go through BLAS, which depends on its threads.
        ring_N: NDArray[np.float64] = (
            np.sin(2 * np.pi * self._hz_M1 * warped_N) * self._decay_MN * gains_M[:, None]
        ).sum(axis=0)
        return ring_N


def _stick(kit: Kit, hand: Hand, velocity: float, sample_rate_hz: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Click (N,) of the stick, half a damped sine and half noise; it grows faster than the blow."""
    time_N = np.arange(round(_CLICK_S * sample_rate_hz)) / sample_rate_hz
    pitch_hz = kit.click_hz * (_LEFT_CLICK if hand == "L" else 1.0)
    noise_N = rng.standard_normal(time_N.size)
    body_N = np.sin(2 * np.pi * pitch_hz * time_N) + 0.5 * noise_N
    click_N: NDArray[np.float64] = kit.click * velocity**1.3 * np.exp(-time_N / 0.0015) * body_N
    return click_N


def _wires(
    blows_S: NDArray[np.float64], kit: Kit, sample_rate_hz: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Noise (S,) of the wires; one decay after another, as one wire under the same head."""
    frequency = np.fft.rfftfreq(blows_S.size, 1 / sample_rate_hz).clip(1.0)
    low_hz, high_hz = kit.wires_hz
    band = 1 / np.sqrt((1 + (low_hz / frequency) ** 4) * (1 + (frequency / high_hz) ** 8))
    noise_S = np.fft.irfft(np.fft.rfft(rng.standard_normal(blows_S.size)) * band, blows_S.size)
    noise_S /= np.sqrt(np.square(noise_S).mean())
    decay_N = np.exp(
        -np.arange(round(_RINGING_DECAYS * kit.wires_decay_s * sample_rate_hz)) / (kit.wires_decay_s * sample_rate_hz)
    )
    envelope_S = np.zeros(blows_S.size)
    for first in np.flatnonzero(blows_S).tolist():
        part_S = envelope_S[first : first + decay_N.size]
        part_S += blows_S[first] * decay_N[: part_S.size]
    return _WIRES_GAIN * envelope_S * noise_S


def record(
    waveform_S: NDArray[np.float64], name: str, sample_rate_hz: int, rng: np.random.Generator, *, nearer_db: float = 0.0
) -> Waveform:
    """Put a dry waveform into a room. The room's response is the same for every clip, its noise is not.

    Args:
        waveform_S: Samples, not silent.
        name: One of `ROOMS`.
        sample_rate_hz: Rate.
        rng: Source of the noise.
        nearer_db: How much more of the direct sound than the room's own share: the microphone's place.

    Returns:
        (S,) samples, in place in time.
    """
    room = ROOMS[name]
    direct_db = room.direct_db + nearer_db
    wet_S = augment.reverberation(
        waveform_S.astype(np.float32),
        sample_rate_hz,
        generator(0, "drums.room", name),
        rt60_low_s=room.rt60_s,
        rt60_high_s=room.rt60_s,
        direct_low_db=direct_db,
        direct_high_db=direct_db,
    )
    noisy_S = augment.noise(
        wet_S, sample_rate_hz, rng, snr_low_db=room.noise_db, snr_high_db=room.noise_db, colour=room.colour
    )
    return augment.band_limit(noisy_S, sample_rate_hz, rng, source_low_hz=room.source_hz, source_high_hz=room.source_hz)
