"""What a blind listener is asked, in which order and on which side.

Half of the clips are drawn at random among those on which the two texts differ: they alone say how often people prefer
the one or the other. The rest are the clips on which the systems disagree most, where defects are found. A trial of the
one kind follows one of the other, so whoever stops early has judged a random sample too. Clips, order and sides are
functions of the seed and the clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Literal

from sonotune.errors import ManifestError
from sonotune.listening.utterances import Form, Utterance
from sonotune.metrics.error_rate import word_edits
from sonotune.runs import generator

Part = Literal["random", "disagreement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One question to a listener.

    Attributes:
        utterance: What is heard, and both texts.
        part: `random` enters the statistics, `disagreement` does not.
        swapped: Whether the text of the second system stands on the left.
    """

    utterance: Utterance
    part: Part
    swapped: bool


def differing(utterances: Sequence[Utterance], form: Form) -> list[Utterance]:
    """The clips on which the two texts differ."""
    return [one for one in utterances if len(set(one.texts(form))) > 1]


def make_trials(
    utterances: Sequence[Utterance], *, seed: int, form: Form, clips: int | None = None, random: int | None = None
) -> list[Trial]:
    """The questions, in their order.

    Args:
        utterances: Of two systems.
        seed: Of the draw, the order and the sides.
        form: Of the texts that are shown.
        clips: Trials at most; None asks about every clip on which the texts differ.
        random: How many of them are drawn at random; None takes half.

    Raises:
        ManifestError: The systems wrote the same everywhere.
    """
    differ = differing(utterances, form)
    if not differ:
        raise ManifestError(
            f"both systems wrote the same text for all {len(utterances)} clips, and there is nothing to choose. Name "
            "runs of different models."
        )
    most = len(differ) if clips is None else min(clips, len(differ))
    drawn = min(most, (most + 1) // 2 if random is None else random)
    order = [differ[index] for index in generator(seed, "listening", "order").permutation(len(differ)).tolist()]
    apart = sorted(order[drawn:], key=lambda one: -word_edits(*one.texts(form)).errors)[: most - drawn]
    parts: tuple[tuple[Part, list[Utterance]], ...] = (("disagreement", apart), ("random", order[:drawn]))
    asked = [
        [Trial(utterance=one, part=part, swapped=_is_swapped(seed, one)) for one in members] for part, members in parts
    ]
    return [trial for trial in chain.from_iterable(zip_longest(*asked)) if trial is not None]


def _is_swapped(seed: int, utterance: Utterance) -> bool:
    return bool(generator(seed, "listening", "side", utterance.clip.id).integers(2))
