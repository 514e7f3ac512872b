"""What blind choices say: how often people prefer the second system, how sure that is, and who said so.

Only clips that were drawn at random count; those with the largest disagreements were chosen because something is wrong
there. A share is that of the clips on which a listener preferred a side; ties are counted beside it. Several listeners
hear the same clips, so their choices are not independent: together they have one vote a clip, that of the majority.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from sonotune.errors import ManifestError
from sonotune.listening.choices import Entry
from sonotune.listening.trials import Part, Trial
from sonotune.metrics.intervals import wilson
from sonotune.types import Score

Vote = Literal["first", "second", "same"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Votes on clips that were drawn at random.

    Attributes:
        first: Clips on which the first system was preferred.
        second: Clips on which the second was.
        same: Ties.
    """

    first: int
    second: int
    same: int

    @property
    def score(self) -> Score | None:
        """Share of the second system among the clips that were no tie; None where all were."""
        decided = self.first + self.second
        if not decided:
            return None
        low, high = wilson(self.second, decided)
        return Score(
            name="preference",
            title="preferred",
            value=self.second / decided,
            low=low,
            high=high,
            count=decided,
            better="higher",
        )

    @property
    def p(self) -> float:
        """Of the sign test: as unequal a count, either way, where both are as good. Ties say nothing.

        Source: Dixon and Mood 1946, "The statistical sign test".
        """
        from scipy.special import bdtr  # noqa: PLC0415  (0.1 s that `sonotune --help` need not pay)

        decided = self.first + self.second
        return min(1.0, 2 * float(bdtr(min(self.first, self.second), decided, 0.5))) if decided else 1.0

    def to_json(self) -> dict[str, Any]:
        """As `--json` has it."""
        found = self.score
        return {
            "preference": None if found is None else found.to_json(),
            "first": self.first,
            "second": self.second,
            "same": self.same,
            "clips": self.first + self.second + self.same,
            "p": self.p,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Votes:
    """What listeners said, by system.

    Attributes:
        random: Listener -> clip -> vote, on clips that were drawn at random.
        disagreement: The same on the clips with the largest disagreements, which enter no statistics.
        unblinded: Choices that are left out because their listener had seen the names.
    """

    random: Mapping[str, Mapping[str, Vote]]
    disagreement: Mapping[str, Mapping[str, Vote]]
    unblinded: int

    @property
    def agreement(self) -> tuple[int, int]:
        """Pairs of listeners that say the same of a clip, and all pairs that judged one."""
        pairs = [
            one[clip] == other[clip]
            for one, other in combinations(self.random.values(), 2)
            for clip in one
            if clip in other
        ]
        return sum(pairs), len(pairs)


def count_votes(trials: Sequence[Trial], entries: Sequence[Entry], *, where: str) -> Votes:
    """Turn sides into systems.

    Args:
        trials: What was asked.
        entries: Of all listeners, in the order in which they were made.
        where: The files, for messages.

    Raises:
        ManifestError: A choice is on a clip that was not asked about, or there is none.
    """
    asked = {trial.utterance.clip.id: trial for trial in trials}
    found: dict[Part, dict[str, dict[str, Vote]]] = {"random": {}, "disagreement": {}}
    revealed: set[str] = set()
    unblinded = 0
    for entry in entries:
        if entry["kind"] == "revealed":
            revealed.add(entry["listener"])
        if entry["kind"] != "choice":
            continue
        trial = asked.get(entry["clip"])
        if trial is None:
            raise ManifestError(
                f"{where} has a choice on the clip {entry['clip']!r:.80}, which was not asked about. Take the "
                "file that the page wrote."
            )
        if entry["listener"] in revealed:
            unblinded += 1
            continue
        found[trial.part].setdefault(entry["listener"], {})[entry["clip"]] = vote_of(entry["choice"], trial)
    if not any(found.values()):
        raise ManifestError(f"{where} has no blind choice. Listen, choose, and save the choices.")
    return Votes(random=found["random"], disagreement=found["disagreement"], unblinded=unblinded)


def vote_of(choice: Literal["left", "right", "same"], trial: Trial) -> Vote:
    """The system that stood on the side that was chosen."""
    if choice == "same":
        return "same"
    return "second" if (choice == "left") == trial.swapped else "first"


def tally(votes: Mapping[str, Vote]) -> Preference:
    """Count the votes of one listener (clip -> vote)."""
    counts = Counter(votes.values())
    return Preference(first=counts["first"], second=counts["second"], same=counts["same"])


def majority(votes: Sequence[Mapping[str, Vote]]) -> dict[str, Vote]:
    """One vote a clip: that of more listeners; `same` where as many prefer either."""
    balance: Counter[str] = Counter()
    for of_listener in votes:
        for clip, vote in of_listener.items():
            balance[clip] += {"first": -1, "second": 1, "same": 0}[vote]
    return {clip: "second" if sum_ > 0 else "first" if sum_ < 0 else "same" for clip, sum_ in balance.items()}
