"""Does anybody speak in a recording? A detector that is asked before the recogniser, which would write text anyhow.

The detector is Silero VAD, a small recurrent network (MIT licence, 2 MB, an optional package). It finds speech in
noise, which the energy of a recording does not tell from the noise.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any, Final, Literal

import torch

from sonotune.audio import io
from sonotune.errors import MissingExtraError
from sonotune.progress import phase
from sonotune.types import Clip, Finding

SpeechCheck = Literal["off", "energy", "silero"]
NO_SPEECH: Final = "audio.no_speech"
INSTALL: Final = "pip install 'sonotune[speech]'"
_LIBRARY: Final = "silero_vad"
_RATE_HZ: Final = 16_000


def clips_without_speech(clips: Sequence[Clip]) -> list[Finding]:
    """A warning for each clip in which the detector finds nobody who speaks.

    Recordings are read block by block, up to the first that has speech.

    Raises:
        MissingExtraError: The detector is not installed.
    """
    if importlib.util.find_spec(_LIBRARY) is None:
        raise MissingExtraError(
            f"evaluation.speech_check=silero needs the package silero-vad, which is not installed. Install it with "
            f"{INSTALL}, or take evaluation.speech_check=energy."
        )
    import silero_vad  # noqa: PLC0415  (optional)

    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its weights are TorchScript, which torch still reads
            detector = silero_vad.load_silero_vad()
        found = []
        with phase("looking for speech", len(clips), "clips") as advance:
            for done, clip in enumerate(clips, 1):
                if not _speaks(clip, detector, silero_vad.get_speech_timestamps):
                    found.append(_finding(clip))
                advance(done)
    finally:
        torch.set_num_threads(threads)  # importing the package sets one
    return found


def _speaks(clip: Clip, detector: Any, find: Any) -> bool:
    blocks = io.read_blocks(
        clip.path, start_s=clip.start_s, duration_s=clip.duration_s, channel=clip.channel, sample_rate_hz=_RATE_HZ
    )
    with torch.inference_mode():
        return any(find(torch.from_numpy(block), detector, sampling_rate=_RATE_HZ) for block in blocks)


def _finding(clip: Clip) -> Finding:
    return Finding(
        check=NO_SPEECH,
        severity="warning",
        message=f"{clip.path}: no speech was found in it, so its text is empty. evaluation.speech_check=energy asks "
        "the model about every recording with a signal, and off about all.",
        clip_ids=(clip.id,),
        path=str(clip.path),
    )
