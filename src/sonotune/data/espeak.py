"""espeak-ng by ctypes: a waveform and the start of each word from a text and a voice.

The library (GPL-3.0, extra `synth`) is loaded when the first utterance is asked for and never before. It keeps its
state in globals: one synthesiser a process, and noise and flutter that continue from one utterance to the next. The
same utterances in the same order in a fresh process give the same samples; `data.synth` relies on exactly that.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sonotune.errors import ConfigError, MissingExtraError, ResourceError

logger = logging.getLogger(__name__)

# Names and values of espeak-ng/speak_lib.h, 1.52.
_AUDIO_OUTPUT_SYNCHRONOUS: Final = 2
_EVENT_END_OF_LIST: Final = 0
_EVENT_WORD: Final = 1
_POSITION_CHARACTER: Final = 1
_TEXT_UTF8: Final = 1
_TEXT_PHONEMES: Final = 0x100
_RATE, _VOLUME, _PITCH, _RANGE, _WORD_GAP = 1, 2, 3, 4, 7

MIN_WORDS_PER_MINUTE: Final = 80
MAX_WORDS_PER_MINUTE: Final = 450


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """How an utterance is spoken.

    Attributes:
        accent: Language code of espeak-ng, such as `en-us`, `en-gb-scotland` or `he`.
        variant: Speaker of espeak-ng, such as `f3` or `Alex`; empty for the accent's own.
        words_per_minute: 80 to 450; 175 is espeak-ng's habit.
        pitch: 0 to 99.
        pitch_range: 0 (monotone) to 99.
        volume: Loudness, 0 to 200. Above 50 some variants clip.
        word_gap: Pause between words in steps of 10 ms at the usual rate.
    """

    accent: str = "en-us"
    variant: str = ""
    words_per_minute: int = 175
    pitch: int = 50
    pitch_range: int = 50
    volume: int = 50
    word_gap: int = 0

    @property
    def name(self) -> str:
        """Accent and variant in espeak-ng's own form, such as `en-us+f3`."""
        return f"{self.accent}+{self.variant}" if self.variant else self.accent


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """What espeak-ng said.

    Attributes:
        waveform_S: Samples in [-1, 1], float32.
        sample_rate_hz: Rate of the samples, 22050.
        word_starts_s: Start of each word that espeak-ng announced. It speaks some word groups as one, so the count may
            be lower than the text's.
    """

    waveform_S: NDArray[np.float32]  # noqa: N815  (shape suffix)
    sample_rate_hz: int
    word_starts_s: tuple[float, ...]


class _Event(ctypes.Structure):
    """`espeak_EVENT`."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def _load() -> tuple[ctypes.CDLL, Path]:
    try:
        import espeakng_loader  # noqa: PLC0415  (GPL and optional: loaded only where speech is asked for)
    except ImportError as error:
        raise MissingExtraError(
            "Speech synthesis needs espeak-ng, and the package espeakng-loader is not installed. "
            "Run: pip install sonotune[synth]"
        ) from error
    return ctypes.CDLL(str(espeakng_loader.get_library_path())), Path(espeakng_loader.get_data_path())


class Synthesizer:
    """The one espeak-ng of this process; take it from `synthesizer()`.

    Raises:
        MissingExtraError: The extra `synth` is not installed.
        ResourceError: espeak-ng found no usable data.
    """

    def __init__(self) -> None:
        self._library, data = _load()
        self._library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self._library.espeak_SetParameter.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.POINTER(ctypes.c_uint),
            ctypes.c_void_p,
        ]
        self.sample_rate_hz = int(self._library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, str(data).encode(), 0))
        if self.sample_rate_hz <= 0:
            raise ResourceError(
                f"espeak-ng could not start with its data in {data}: it returned {self.sample_rate_hz}, allowed is a "
                "sample rate. Reinstall: pip install --force-reinstall sonotune[synth]"
            )
        self._samples = bytearray()
        self._starts_s: list[float] = []
        self._variants = frozenset(path.name for path in (data / "voices" / "!v").iterdir())
        self._callback = _Callback(self._receive)  # kept: ctypes does not, and espeak-ng would call freed memory
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, num_samples: int, events: Any) -> int:
        if samples and num_samples > 0:
            self._samples.extend(ctypes.string_at(samples, num_samples * 2))
        for event in _until_end(events):
            if event.type == _EVENT_WORD:
                self._starts_s.append(event.sample / self.sample_rate_hz)
        return 0

    def say(self, text: str, voice: Voice, *, phonemes: bool = False, seed: int = 0) -> Utterance:
        """Speak a text.

        Args:
            text: Words in the language of the voice; within `[[...]]` espeak-ng phonemes where `phonemes` is set.
            voice: Who speaks, and how.
            phonemes: Whether `[[...]]` in the text holds phonemes.
            seed: Of the breath that some variants have, 0 to 2**31 - 1. espeak-ng itself would take the time of day.

        Returns:
            The waveform with espeak-ng's own silences, and the starts of the words.

        Raises:
            ConfigError: espeak-ng has no such voice.
            ResourceError: espeak-ng refused the text or said nothing.
        """
        self._select(voice)
        self._library.espeak_ng_SetRandSeed(seed)
        self._samples.clear()
        self._starts_s.clear()
        encoded = text.encode() + b"\0"
        flags = _TEXT_UTF8 | (_TEXT_PHONEMES if phonemes else 0)
        status = self._library.espeak_Synth(encoded, len(encoded), 0, _POSITION_CHARACTER, 0, flags, None, None)
        self._library.espeak_Synchronize()
        if status != 0 or not self._samples:
            raise ResourceError(
                f"espeak-ng said nothing for {text!r} with voice {voice.name}: status {status}, "
                f"{len(self._samples)} bytes; allowed is status 0 and sound. Check that the voice knows the script."
            )
        waveform_S = np.frombuffer(bytes(self._samples), np.int16).astype(np.float32) / np.float32(32768)
        return Utterance(waveform_S=waveform_S, sample_rate_hz=self.sample_rate_hz, word_starts_s=tuple(self._starts_s))

    def _select(self, voice: Voice) -> None:
        # espeak-ng takes an unknown variant without a word and speaks with the plain voice.
        if voice.variant and voice.variant not in self._variants:
            raise ConfigError(
                f"espeak-ng has no variant {voice.variant!r}; it has {', '.join(sorted(self._variants))}. "
                "Choose one of these or leave it empty."
            )
        if status := self._library.espeak_SetVoiceByName(voice.name.encode()):
            raise ConfigError(
                f"espeak-ng has no voice {voice.name!r} (status {status}); allowed are its language codes such as "
                "en-us, en-gb-scotland, he. Choose another accent."
            )
        rate = min(max(voice.words_per_minute, MIN_WORDS_PER_MINUTE), MAX_WORDS_PER_MINUTE)
        for parameter, value in (
            (_RATE, rate),
            (_VOLUME, voice.volume),
            (_PITCH, voice.pitch),
            (_RANGE, voice.pitch_range),
            (_WORD_GAP, voice.word_gap),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)


def _until_end(events: Any) -> Iterator[_Event]:
    index = 0
    while (event := events[index]).type != _EVENT_END_OF_LIST:
        yield event
        index += 1


_process_synthesizer: Synthesizer | None = None


def synthesizer() -> Synthesizer:
    """The synthesiser of this process, started at the first call.

    Raises:
        MissingExtraError: The extra `synth` is not installed.
    """
    global _process_synthesizer  # espeak-ng is itself a global of the process
    if _process_synthesizer is None:
        _process_synthesizer = Synthesizer()
    return _process_synthesizer
