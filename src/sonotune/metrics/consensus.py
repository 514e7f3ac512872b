"""One transcript from several of the same clip: ROVER votes word by word, MBR takes the most central one.

The trick: texts are aligned by rapidfuzz, which every error rate uses, and never by an edit distance of their own. A
transcript is aligned with a network of alternatives as with one list of words: of each slot the word that it has as
well, else the word that leads there. That is the alignment with the whole network (cost 0 where any word of the slot is
the same) except where a slot holds two words of the same transcript. Where two alignments have as many edits, the one
that was taken first may be wrong; so each member is taken out and aligned with all others again, as in alignments of
many sequences. That makes up to three alignments a member.

Ties, of votes and of distances, go to the member that is named first.

Source: Fiscus 1997, "A post-processing system to yield reduced word error rates: ROVER"; Goel and Byrne 2000, "Minimum
Bayes-risk automatic speech recognition" (here over a list of transcripts that are equally likely).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sonotune.metrics.error_rate import char_edits, unit_runs, word_edits


@dataclass(frozen=True, slots=True, kw_only=True)
class VotedWord:
    """One word in the form that is compared, and the written word that it is, or is a part of.

    Attributes:
        key: Scoring form, without white space.
        written: The word as the member wrote it, with what belongs to it, such as a comma.
        part: Place of the key among the keys of the written word, which is 0 for most.
        parts: How many keys the written word has: 2 of `well-known`.
        spaced: Whether white space stands before the written word.
        confidence: Probability that the word is right; None where it is not known.
    """

    key: str
    written: str
    part: int = 0
    parts: int = 1
    spaced: bool = True
    confidence: float | None = None


Transcript = Sequence[VotedWord]
_Slot = dict[int, VotedWord | None]
"""Member -> its word, or None where it has none, of the members that are in the network."""
_REALIGNED = 2
"""Rounds in which each member is taken out of the network and aligned with the others once more, at most."""


def most_central(transcripts: Sequence[Transcript]) -> int:
    """Place of the transcript with the fewest word errors to all others; then the fewest errors in characters.

    Errors are summed and not divided by lengths, so that an empty transcript has a distance as well.
    """
    texts = [" ".join(word.key for word in transcript) for transcript in transcripts]
    words = [sum(word_edits(other, text).errors for other in texts) for text in texts]
    least = min(words)
    tied = [place for place, errors in enumerate(words) if errors == least]
    if len({texts[place] for place in tied}) == 1:
        return tied[0]
    return min(tied, key=lambda place: (sum(char_edits(other, texts[place]).errors for other in texts), place))


def rover(transcripts: Sequence[Transcript], *, deletion_confidence: float | None = None) -> str:
    """The text that wins the vote at every place; a member that has no word there votes for none.

    Args:
        transcripts: One a member; an empty one votes for no word anywhere.
        deletion_confidence: A vote counts as much as the confidence of its word, and one for no word as much as this;
            None counts votes.

    Raises:
        ValueError: Confidences are asked for and a word has none.
    """
    winners = [
        won
        for slot in _network(transcripts)
        if (won := _winner(slot, len(transcripts), deletion_confidence)) is not None
    ]
    return _written(winners)


# --- the network -------------------------------------------------------------------------------------


def _network(transcripts: Sequence[Transcript]) -> list[_Slot]:
    """The words of all members in slots, in reading order; from the most central transcript to the farthest."""
    first = most_central(transcripts)
    centre = " ".join(word.key for word in transcripts[first])
    distances = [word_edits(centre, " ".join(word.key for word in one)).errors for one in transcripts]
    order = sorted(range(len(transcripts)), key=lambda place: (place != first, distances[place], place))
    network: list[_Slot] = []
    added: list[int] = []
    for member in order:
        network = _added(network, added, member, transcripts[member])
        added.append(member)
    for _ in range(_REALIGNED):
        before = network
        for member in order:
            others = [kept for slot in network if any((kept := _without(slot, member)).values())]
            network = _added(others, [one for one in order if one != member], member, transcripts[member])
        if network == before:
            break
    return network


def _without(slot: _Slot, member: int) -> _Slot:
    return {one: word for one, word in slot.items() if one != member}


def _added(network: Sequence[_Slot], added: Sequence[int], member: int, transcript: Transcript) -> list[_Slot]:
    """The network with one more member."""
    own = {word.key for word in transcript}
    shown = [_shown(slot, own) for slot in network]
    kept = [place for place, key in enumerate(shown) if key is not None]
    before: dict[int, list[VotedWord]] = {}  # place among the kept slots -> words that come before it and match none
    matched: dict[int, VotedWord] = {}
    for operation, left, right, begin, end in unit_runs(
        [str(shown[place]) for place in kept], [word.key for word in transcript]
    ):
        if operation == "insert":
            before.setdefault(left, []).extend(transcript[begin:end])
        elif operation != "delete":
            matched |= {kept[left + step]: transcript[begin + step] for step in range(right - left)}
    result: list[_Slot] = []
    borders = [*kept, len(network)]
    place = 0
    for index, border in enumerate(borders):
        waiting = list(before.get(index, ()))
        for slot in network[place:border]:  # slots that were left out take what comes there
            result.append(slot | {member: waiting.pop(0) if waiting else None})
        result += [dict.fromkeys(added, None) | {member: word} for word in waiting]
        if border < len(network):
            result.append(network[border] | {member: matched.get(border)})
        place = border + 1
    return result


def _shown(slot: _Slot, own: set[str]) -> str | None:
    """The key that stands for a slot where a transcript with the keys `own` is aligned.

    None leaves the slot out: some member has no word there, so that none more costs nothing, and no word there is one
    of the transcript's.
    """
    keys = Counter(word.key for word in slot.values() if word is not None)
    shared = [key for key in keys if key in own]
    if not shared and None in slot.values():
        return None
    return max(shared or keys, key=lambda key: keys[key])


def _winner(slot: _Slot, members: int, deletion_confidence: float | None) -> list[tuple[int, VotedWord]] | None:
    """The members that voted for the word that won, with it as they have it; None where no word won."""
    votes: dict[str | None, list[float]] = {}
    for member in range(members):  # in the order of their names, so that the first of equals is the first named
        word = slot[member]
        votes.setdefault(None if word is None else word.key, []).append(_weight(word, deletion_confidence))
    won = max(votes, key=lambda key: math.fsum(votes[key]))
    if won is None:
        return None
    return [(member, word) for member in range(members) if (word := slot[member]) is not None and word.key == won]


def _weight(word: VotedWord | None, deletion_confidence: float | None) -> float:
    if deletion_confidence is None:
        return 1.0
    if word is None:
        return deletion_confidence
    if word.confidence is None:
        raise ValueError(f"the word {word.written!r} has no confidence to vote with.")
    return word.confidence


def _written(winners: Sequence[Sequence[tuple[int, VotedWord]]]) -> str:
    """The words that won as most of their voters wrote them.

    A written word of several keys is taken where its voter won with all of them; else the key itself is written.
    """
    text = ""
    place = 0
    while place < len(winners):
        whole = [word for member, word in winners[place] if _is_whole(winners, place, member, word)]
        counts = Counter(word.written for word in whole)
        chosen = max(whole, key=lambda word: counts[word.written], default=None)
        first = winners[place][0][1]
        spaced = (first if chosen is None else chosen).spaced or (chosen is None and first.part > 0)
        text += (" " if spaced and text else "") + (first.key if chosen is None else chosen.written)
        place += 1 if chosen is None else chosen.parts
    return text


def _is_whole(winners: Sequence[Sequence[tuple[int, VotedWord]]], place: int, member: int, word: VotedWord) -> bool:
    if word.part != 0 or place + word.parts > len(winners):
        return False
    return all(
        any(
            other == member and one.part == step and one.parts == word.parts and one.written == word.written
            for other, one in winners[place + step]
        )
        for step in range(word.parts)
    )
