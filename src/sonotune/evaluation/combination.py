"""Predictions of several models about the same clips, made into one prediction a clip.

Texts are voted on in scoring form, word by word, and written as most of the voters wrote them (`metrics.consensus`).
Probabilities of classes are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sonotune.data.words import word_spans, words_of
from sonotune.errors import ConfigError
from sonotune.metrics.consensus import VotedWord, most_central, rover
from sonotune.types import CombinationMethod, Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class CombinationSettings:
    """How predictions are combined.

    Attributes:
        method: Of texts: `rover` votes word by word, `mbr` takes the transcript that is nearest to all others.
        deletion_confidence: Votes count as much as the confidences of their words, and one for no word as much as
            this; None counts votes.
    """

    method: CombinationMethod = "rover"
    deletion_confidence: float | None = None

    def check_members(self, number: int, *, texts: bool) -> None:
        """Refuse too few members.

        Args:
            number: How many there are.
            texts: Whether they write texts; else they give classes.

        Raises:
            ConfigError: There are none or one; or two whose texts vote by count, of which the first would always win.
        """
        if number < 2:
            raise ConfigError(f"an ensemble has at least two members; found {number}. Name more, or use one model.")
        if number == 2 and texts and (self.method == "mbr" or self.deletion_confidence is None):
            raise ConfigError(
                "two members cannot outvote each other: every tie goes to the one named first, so that its texts would "
                "come out at the cost of both. Name a third member, or let rover count confidences: "
                "ensemble.votes=confidence evaluation.confidence=true, or --votes confidence for stored predictions."
            )


def combine_predictions(
    members: Sequence[Sequence[Prediction]], scoring: Callable[[str], str], settings: CombinationSettings
) -> list[Prediction]:
    """One prediction a clip.

    Args:
        members: Predictions of each member, of the same clips in the same order.
        scoring: The form in which texts are compared.
        settings: How.

    Returns:
        Predictions with texts, or with probabilities where the members give classes. One is `no_signal` where no
        member decoded the clip, and `finite` unless no member computed numbers.

    Raises:
        ConfigError: Members know other classes, or a word has no confidence to vote with.
        ValueError: The clips are not the same.
    """
    if len({tuple(one.clip_id for one in predictions) for predictions in members}) != 1:
        raise ValueError("the members of an ensemble must have predicted the same clips in the same order.")
    return [_combined(list(clip), scoring, settings) for clip in zip(*members, strict=True)]


def _combined(
    predictions: Sequence[Prediction], scoring: Callable[[str], str], settings: CombinationSettings
) -> Prediction:
    finite = any(one.finite for one in predictions)
    if any(one.scores for one in predictions):
        return Prediction(clip_id=predictions[0].clip_id, scores=_mean_scores(predictions), finite=finite)
    texts = [one.text or "" for one in predictions]
    return Prediction(
        clip_id=predictions[0].clip_id,
        text=texts[0] if len(set(texts)) == 1 else _combined_text(predictions, scoring, settings),
        finite=finite,
        no_signal=all(one.no_signal for one in predictions),
    )


def _combined_text(
    predictions: Sequence[Prediction], scoring: Callable[[str], str], settings: CombinationSettings
) -> str:
    confident = settings.deletion_confidence is not None
    transcripts = [voted_words(one, scoring, confident=confident) for one in predictions]
    if settings.method == "mbr":
        return predictions[most_central(transcripts)].text or ""
    return rover(transcripts, deletion_confidence=settings.deletion_confidence)


def _mean_scores(predictions: Sequence[Prediction]) -> dict[str, float]:
    """The mean probability of each class over the members that could read the clip."""
    heard = [one.scores for one in predictions if one.scores]
    for scores in heard[1:]:
        if scores.keys() != heard[0].keys():
            other = sorted(scores.keys() ^ heard[0].keys())
            raise ConfigError(
                f"the members know other classes, such as {other[0]!r}; probabilities are averaged over the same "
                "classes. Leave the member out, or train it on the same classes."
            )
    return {label: math.fsum(scores[label] for scores in heard) / len(heard) for label in heard[0]}


def voted_words(prediction: Prediction, scoring: Callable[[str], str], *, confident: bool = False) -> list[VotedWord]:
    """The words of a text as they vote; what scoring sees nothing of, such as a dash, belongs to the word before it.

    Args:
        prediction: With a text.
        scoring: The form in which texts are compared.
        confident: Whether every word must bring its confidence.

    Raises:
        ConfigError: The words bring no confidences, and they are asked for.
    """
    text = prediction.text or ""
    spans = word_spans(text)
    confidences = _confidences(prediction, len(spans)) if confident else [None] * len(spans)
    words: list[VotedWord] = []
    lead = ""  # of a text that begins with what is no word
    for place, (begin, end) in enumerate(spans):
        spaced = place == 0 or spans[place - 1][1] < begin
        written, keys = text[begin:end], words_of(scoring(text[begin:end]))
        if not keys:
            own = (" " if spaced else "") + written
            if not words:
                lead += (own if lead else written) + ("" if place + 1 == len(spans) else _gap(spans, place))
            else:
                parts = words[-1].parts
                words[-parts:] = [replace(word, written=word.written + own) for word in words[-parts:]]
            continue
        words += [
            VotedWord(
                key=key,
                written=lead + written,
                part=part,
                parts=len(keys),
                spaced=spaced or bool(lead),
                confidence=confidences[place],
            )
            for part, key in enumerate(keys)
        ]
        lead = ""
    return words


def _gap(spans: Sequence[tuple[int, int]], place: int) -> str:
    return " " if spans[place][1] < spans[place + 1][0] else ""


def _confidences(prediction: Prediction, words: int) -> list[float | None]:
    found = [word.confidence for word in prediction.words or ()]
    if len(found) != words or any(one is None for one in found):
        raise ConfigError(
            f"clip {prediction.clip_id!r}: its words bring no confidences, and votes are to count by them. Decode with "
            "evaluation.confidence=true (`sonotune calibrate` makes them comparable between models), or count votes."
        )
    return list(found)
