"""Recordings by name: what sound meets between a mouth and a file, in the order in which it meets it.

A chain goes from the room (reverberation, noise) to the microphone (tilt, gain, clipping), the band and the codec of
the device, and the line (lost packets, level). Its steps come together: a packet is lost of a call that was coded. No
step changes the length, so word times and windows still fit. The ranges are choices, wide enough to train with, and
the same in tests; sources stand beside them. The transforms are those of `audio.augment`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from sonotune.types import ChainName


class ChainStep(NamedTuple):
    """One transform of a chain.

    Attributes:
        name: Of the step, and of its transform in `audio.augment.chain_steps`.
        probability: Chance that a clip which goes through the chain meets it.
        limits: Arguments of the transform.
    """

    name: str
    probability: float
    limits: Mapping[str, Any]


ORDER: Final = (
    "reverb",
    "noise",
    "tilt",
    "gain",
    "clipping",
    "band_limit",
    "band_pass",
    "codec",
    "packet_loss",
    "line_gain",
)
"""The steps that a chain may have, in the order of the physics."""

CHAINS: Final[Mapping[ChainName, tuple[ChainStep, ...]]] = MappingProxyType(
    {
        # A handset near the mouth, the band of the telephone (ITU-T G.712), GSM or G.711, and a good network.
        "phone_call": (
            ChainStep("reverb", 0.5, {"rt60_low_s": 0.1, "rt60_high_s": 0.4, "direct_low_db": 5.0}),
            ChainStep("noise", 0.8, {"snr_low_db": 10.0, "snr_high_db": 30.0}),
            ChainStep("tilt", 1.0, {"max_db": 6.0}),
            ChainStep("clipping", 0.1, {"low_share": 0.001, "high_share": 0.01}),
            ChainStep("band_pass", 1.0, {"low_hz": 300.0, "high_hz": 3_400.0}),
            ChainStep("codec", 1.0, {"names": ("gsm", "ulaw", "alaw")}),
            ChainStep("packet_loss", 0.5, {"loss_low": 0.005, "loss_high": 0.05, "burst_high": 3.0}),
            ChainStep("line_gain", 1.0, {"low_db": -12.0, "high_db": 3.0}),
        ),
        # A laptop at arm's length, Opus, and a network that loses up to 15 % in bursts of up to 120 ms on average.
        "voip": (
            ChainStep("reverb", 0.8, {"rt60_low_s": 0.2, "rt60_high_s": 0.7, "direct_low_db": 0.0}),
            ChainStep("noise", 0.8, {"snr_low_db": 5.0, "snr_high_db": 30.0}),
            ChainStep("tilt", 1.0, {"max_db": 6.0}),
            ChainStep("gain", 1.0, {"low_db": -9.0, "high_db": 6.0}),
            ChainStep("codec", 1.0, {"names": ("opus",)}),
            ChainStep("packet_loss", 1.0, {"loss_low": 0.01, "loss_high": 0.15, "burst_high": 6.0}),
        ),
        # A voice message: a telephone held anywhere, in the street or at home, Opus, and a file that arrives whole.
        "whatsapp": (
            ChainStep("reverb", 0.6, {"rt60_low_s": 0.1, "rt60_high_s": 0.6, "direct_low_db": 0.0}),
            ChainStep("noise", 0.9, {"snr_low_db": 3.0, "snr_high_db": 25.0}),
            ChainStep("tilt", 1.0, {"max_db": 8.0}),
            ChainStep("gain", 1.0, {"low_db": -12.0, "high_db": 6.0}),
            ChainStep("clipping", 0.2, {"low_share": 0.001, "high_share": 0.02}),
            ChainStep("codec", 1.0, {"names": ("opus",)}),
        ),
        # Far from the microphone in a large room, where the room is as loud as the speaker or louder.
        "hall": (
            ChainStep(
                "reverb", 1.0, {"rt60_low_s": 0.8, "rt60_high_s": 2.5, "direct_low_db": -6.0, "direct_high_db": 6.0}
            ),
            ChainStep("noise", 0.8, {"snr_low_db": 10.0, "snr_high_db": 30.0}),
            ChainStep("tilt", 1.0, {"max_db": 6.0}),
            ChainStep("gain", 1.0, {"low_db": -20.0, "high_db": 0.0}),
        ),
    }
)
