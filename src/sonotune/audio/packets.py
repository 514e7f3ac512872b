"""Speech on a line that loses packets: which are lost, in bursts, and what stands in their place.

Shape letters: S samples, P packets, K samples of a packet.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sonotune.types import Concealment

PACKET_S: Final = 0.020
"""Length of a packet of speech."""
MAX_LOSS: Final = 0.5
"""Largest share of packets that may be lost."""
_FADE_S: Final = 0.060  # of loss, after which a repeated packet is silent, as in ITU-T G.711 appendix I


def packet_loss(
    waveform_S: NDArray[np.float32],
    sample_rate_hz: int,
    rng: np.random.Generator,
    *,
    loss_low: float = 0.01,
    loss_high: float = 0.1,
    burst_low: float = 1.0,
    burst_high: float = 5.0,
    concealment: Concealment = "repeat",
) -> NDArray[np.float32]:
    """Lose packets of 20 ms in bursts, as a line with jitter does.

    Args:
        waveform_S: Samples.
        sample_rate_hz: Rate.
        rng: Source of the share, the length of bursts, and of which packets are lost.
        loss_low: Smallest share of packets that are lost in the long run.
        loss_high: Largest share.
        burst_low: Shortest mean length of a burst, in packets.
        burst_high: Longest.
        concealment: What stands in place of a lost packet: `zero`, or with `repeat` the last one that arrived, fading
            to silence within 60 ms of loss (ITU-T G.711 appendix I). Nothing can be repeated before the first one.

    Returns:
        (S,) samples; those that arrived are unchanged.
    """
    loss, burst = rng.uniform(loss_low, loss_high), rng.uniform(burst_low, burst_high)
    size = max(1, round(PACKET_S * sample_rate_hz))
    packets = -(-waveform_S.size // size)
    lost_P = lost_packets(packets, rng, loss=loss, burst=burst)
    if not lost_P.any():
        return waveform_S
    packets_PK = np.zeros((packets, size), dtype=np.float32)
    packets_PK.reshape(-1)[: waveform_S.size] = waveform_S
    if concealment == "zero":
        packets_PK[lost_P] = 0.0
    else:
        place_P = np.arange(packets)
        last_P = np.maximum.accumulate(np.where(lost_P, -1, place_P))
        since_PK = ((place_P - last_P - 1)[:, None] * size + np.arange(size)).astype(np.float32)
        fade_PK = np.maximum(0.0, 1.0 - since_PK / np.float32(_FADE_S * sample_rate_hz)).astype(np.float32)
        fade_PK[last_P < 0] = 0.0
        packets_PK = np.where(lost_P[:, None], packets_PK[np.maximum(last_P, 0)] * fade_PK, packets_PK)
    return np.ascontiguousarray(packets_PK.reshape(-1)[: waveform_S.size])


def lost_packets(count: int, rng: np.random.Generator, *, loss: float, burst: float) -> NDArray[np.bool_]:
    """Which packets are lost by a line with two states, one that delivers and one that loses.

    Args:
        count: Packets.
        rng: Source of the states.
        loss: Share of packets that are lost in the long run, from 0 to `MAX_LOSS`.
        burst: Mean packets lost in a row, 1 or more.

    Returns:
        (count,) whether each is lost. Runs of both kinds have geometric lengths, and the first state is drawn from the
        long run, so that short clips lose as much as long ones.

    Source: Gilbert 1960; Elliott 1963, with nothing lost in the good state and everything in the bad one.
    """
    lost_P = np.zeros(count, dtype=np.bool_)
    bad = bool(rng.random() < loss)
    leave_bad = 1.0 / burst
    leave_good = leave_bad * loss / (1.0 - loss)
    place = 0
    while place < count and (bad or leave_good > 0.0):
        run = int(rng.geometric(leave_bad if bad else leave_good))
        lost_P[place : place + run] = bad
        place, bad = place + run, not bad
    return lost_P
