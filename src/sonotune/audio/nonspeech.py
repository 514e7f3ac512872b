"""Sounds without words, made from a seed: what a recogniser should write nothing for.

Each kind is a function of the length and a generator. Levels and pitches are drawn anew for each clip, so that a model
is asked about more than one loudness. Shape letters: S samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Waveform = NDArray[np.float32]
Source = Callable[[int, np.random.Generator, Sequence[Waveform]], NDArray[np.float64]]
"""Samples wanted, generator, and recordings of speech (which one kind is made of) -> (S,) of any level."""

RATE_HZ: Final = 16_000
_LEVELS_DB: Final = (-40.0, -15.0)
"""Root mean square of a sound, in dB of full scale, drawn between these."""
_VOICES: Final = 6
_CHORDS: Final = ((0, 4, 7), (0, 3, 7), (0, 5, 9), (2, 5, 9))
"""Notes of a chord, in semitones above the key."""


def silence(samples: int, generator: np.random.Generator, speech: Sequence[Waveform]) -> NDArray[np.float64]:
    """Nothing."""
    return np.zeros(samples)


def white_noise(samples: int, generator: np.random.Generator, speech: Sequence[Waveform]) -> NDArray[np.float64]:
    """The same power in each Hz, such as the hiss of an amplifier."""
    return generator.standard_normal(samples)


def pink_noise(samples: int, generator: np.random.Generator, speech: Sequence[Waveform]) -> NDArray[np.float64]:
    """The same power in each octave, such as rain."""
    return _coloured(samples, generator, 0.5)


def brown_noise(samples: int, generator: np.random.Generator, speech: Sequence[Waveform]) -> NDArray[np.float64]:
    """Six dB less power in each octave, such as wind and traffic."""
    return _coloured(samples, generator, 1.0)


def tones(samples: int, generator: np.random.Generator, speech: Sequence[Waveform]) -> NDArray[np.float64]:
    """Two tones that sound together, on and off in turn, such as the signals of a telephone."""
    time_S = np.arange(samples) / RATE_HZ
    pair = generator.uniform(300.0, 1800.0, size=2)
    period_s = generator.uniform(0.4, 1.5)
    sounding_S = (time_S % period_s) < period_s * generator.uniform(0.4, 1.0)
    both_S = np.sin(2 * np.pi * pair[0] * time_S) + np.sin(2 * np.pi * pair[1] * time_S)
    return np.asarray(both_S * sounding_S)


def music(samples: int, generator: np.random.Generator, speech: Sequence[Waveform]) -> NDArray[np.float64]:
    """Chords of tones with four harmonics that die away, and a beat of noise bursts below them."""
    beat = round(RATE_HZ * 60 / generator.uniform(70, 140))
    key_hz = 110.0 * 2 ** (generator.integers(0, 12) / 12)
    out_S = np.zeros(samples)
    for index, start in enumerate(range(0, samples, beat)):
        length = min(beat, samples - start)
        time_T = np.arange(length) / RATE_HZ
        chord = _CHORDS[index // 2 % len(_CHORDS)]
        for note in chord:
            for harmonic in range(1, 5):
                pitch_hz = key_hz * 2 ** (note / 12) * harmonic
                decay_T = np.exp(-2.5 * harmonic**0.5 * time_T)
                out_S[start : start + length] += np.sin(2 * np.pi * pitch_hz * time_T) * decay_T / harmonic
        drum_T = generator.standard_normal(length) * np.exp(-40.0 * time_T)
        out_S[start : start + length] += drum_T * (1.5 if index % 2 else 0.6)
    return out_S


def reversed_babble(samples: int, generator: np.random.Generator, speech: Sequence[Waveform]) -> NDArray[np.float64]:
    """Six voices that speak at once, played backwards: the sounds and the melody of speech, and no word of it.

    Raises:
        ValueError: There is no speech to make it of.
    """
    if not speech:
        raise ValueError("reversed babble is made of recordings of speech, and there is none")
    out_S = np.zeros(samples)
    for _ in range(_VOICES):
        parts: list[Waveform] = []
        while sum(part.size for part in parts) < samples:
            parts.append(speech[int(generator.integers(len(speech)))])
        voice_S = np.concatenate(parts)[:samples]
        out_S += voice_S / max(float(np.sqrt(np.mean(np.square(voice_S)))), 1e-4)
    return out_S[::-1]


KINDS: Final[Mapping[str, Source]] = {
    "silence": silence,
    "white_noise": white_noise,
    "pink_noise": pink_noise,
    "brown_noise": brown_noise,
    "tones": tones,
    "music": music,
    "reversed_babble": reversed_babble,
}


def render(
    kind: str, duration_s: float, generator: np.random.Generator, speech: Sequence[Waveform] = ()
) -> NDArray[np.float32]:
    """One sound at 16 kHz.

    Args:
        kind: A name in `KINDS`.
        duration_s: Its length, in seconds.
        generator: Draws its level and what its kind leaves open.
        speech: Recordings at 16 kHz that `reversed_babble` is made of.

    Returns:
        Samples (S,) within full scale.
    """
    raw_S = KINDS[kind](max(1, round(duration_s * RATE_HZ)), generator, speech)
    level = 10 ** (generator.uniform(*_LEVELS_DB) / 20)
    power = float(np.sqrt(np.mean(np.square(raw_S))))
    scaled_S = raw_S * (level / power) if power > 0 else raw_S
    return np.clip(scaled_S, -1.0, 1.0).astype(np.float32)


def _coloured(samples: int, generator: np.random.Generator, slope: float) -> NDArray[np.float64]:
    """Noise whose amplitude falls with the frequency to the power of `slope`."""
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / RATE_HZ)
    # Below what a telephone or a small speaker carries, all of the power would be in a rumble nobody hears.
    return np.asarray(np.fft.irfft(spectrum / np.maximum(frequency, 20.0) ** slope, samples))
