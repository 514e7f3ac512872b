"""Blind choices: what is asked, on which side, and what the choices say of two systems."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from scipy.stats import binomtest

from sonotune.errors import ManifestError
from sonotune.listening.choices import Entry
from sonotune.listening.preference import Preference, Vote, count_votes, majority, tally, vote_of
from sonotune.listening.trials import Trial, make_trials
from sonotune.listening.utterances import Utterance
from sonotune.metrics.error_rate import word_edits
from sonotune.types import Clip

AT = "2026-12-01T10:00:00+00:00"


def utterances(count: int, *, same: int = 0) -> list[Utterance]:
    """Clips whose texts differ in one word for the first third, two for the next, three for the last."""
    made = []
    for index in range(count + same):
        first = "one two three four"
        second = " ".join(
            ["other"] * (1 + 3 * index // max(1, count)) + first.split()[1 + 3 * index // max(1, count) :]
        )
        texts = (first, first if index >= count else second)
        made.append(
            Utterance(
                clip=Clip(id=f"c{index}", path=Path("x.wav"), duration_s=1.0),
                written=texts,
                scored=texts,
                reference=None,
                facts="",
            )
        )
    return made


def choice(clip: str, said: Literal["left", "right", "same"], *, by: str = "dana") -> Entry:
    return {"kind": "choice", "clip": clip, "choice": said, "listener": by, "at": AT}


def answer(trial: Trial, vote: Vote, *, by: str = "dana") -> Entry:
    """The choice by which a listener says that a system is better."""
    if vote == "same":
        return choice(trial.utterance.clip.id, "same", by=by)
    return choice(trial.utterance.clip.id, "left" if (vote == "second") == trial.swapped else "right", by=by)


def test_questions_are_about_clips_that_differ_and_alternate():
    trials = make_trials(utterances(40, same=10), seed=3, form="written", clips=20)
    assert len({trial.utterance.clip.id for trial in trials}) == 20
    assert [trial.part for trial in trials] == ["disagreement", "random"] * 10
    assert all(len(set(trial.utterance.written)) == 2 for trial in trials)
    apart = [word_edits(*trial.utterance.written).errors for trial in trials if trial.part == "disagreement"]
    assert apart == sorted(apart, reverse=True)
    assert min(apart) == 3
    drawn = [word_edits(*trial.utterance.written).errors for trial in trials if trial.part == "random"]
    assert len(set(drawn)) == 3
    assert trials == make_trials(utterances(40, same=10), seed=3, form="written", clips=20)
    assert trials != make_trials(utterances(40, same=10), seed=4, form="written", clips=20)


def test_every_clip_that_differs_is_asked_about_without_a_limit():
    assert Counter(t.part for t in make_trials(utterances(9, same=3), seed=0, form="scored")) == {
        "random": 5,
        "disagreement": 4,
    }
    assert Counter(t.part for t in make_trials(utterances(9), seed=0, form="scored", random=0)) == {"disagreement": 9}
    assert Counter(t.part for t in make_trials(utterances(9), seed=0, form="scored", random=99)) == {"random": 9}
    with pytest.raises(ManifestError, match="wrote the same text for all 4 clips"):
        make_trials(utterances(0, same=4), seed=0, form="written")


def test_sides_are_drawn_for_each_clip():
    swapped = [trial.swapped for seed in range(20) for trial in make_trials(utterances(50), seed=seed, form="written")]
    assert binomtest(sum(swapped), len(swapped)).pvalue > 0.001
    by_part = Counter((trial.part, trial.swapped) for trial in make_trials(utterances(400), seed=0, form="written"))
    assert min(by_part.values()) > 70  # of 100


def test_a_choice_of_a_side_is_a_vote_for_the_system_that_stood_there():
    for trial in make_trials(utterances(20), seed=1, form="written"):
        shown_left = trial.utterance.written[1 if trial.swapped else 0]
        vote = vote_of("left", trial)
        assert trial.utterance.written[("first", "second").index(vote)] == shown_left
        assert {vote_of("left", trial), vote_of("right", trial)} == {"first", "second"}
        assert vote_of("same", trial) == "same"


@pytest.mark.parametrize("truth", [0.50, 0.55, 0.60])
def test_intervals_of_two_hundred_listeners_hold_the_truth(truth: float):
    """Each hears other clips, and prefers B more where the systems differ more; a tenth of the answers are ties."""
    held, significant, listeners = 0, 0, 200
    asked = utterances(90)
    preferred = {1: truth - 0.3, 2: truth, 3: truth + 0.3}  # by words that differ; a third of the clips each
    for listener in range(listeners):
        random = np.random.default_rng([listener, round(100 * truth)])
        trials = make_trials(asked, seed=listener, form="written", clips=90)
        entries = []
        for trial in trials:
            second = random.random() < preferred[word_edits(*trial.utterance.written).errors]
            vote: Vote = "same" if random.random() < 0.1 else "second" if second else "first"
            entries.append(answer(trial, vote))
        found = tally(count_votes(trials, entries, where="x").random["dana"])
        assert found.first + found.second + found.same == 45
        score = found.score
        assert score is not None
        held += score.low <= truth <= score.high
        significant += found.p < 0.05
    assert held / listeners >= 0.91  # clips are drawn without replacement, so it may well be more than 0.95
    if truth == 0.50:
        assert significant / listeners <= 0.08


def test_the_disagreements_would_say_something_else():
    trials = make_trials(utterances(90), seed=0, form="written", clips=60)
    entries = [answer(t, "second" if word_edits(*t.utterance.written).errors == 3 else "first") for t in trials]
    votes = count_votes(trials, entries, where="x")
    assert tally(votes.disagreement["dana"]).second >= 15
    found = tally(votes.random["dana"])
    assert found.score is not None
    assert found.score.low < 1 / 3 < found.score.high


@pytest.mark.parametrize(("first", "second"), [(0, 1), (3, 9), (10, 10), (0, 40), (57, 83)])
def test_the_sign_test_is_the_exact_one(first: int, second: int):
    expected = binomtest(second, first + second, 0.5).pvalue
    assert Preference(first=first, second=second, same=5).p == pytest.approx(expected)


def test_ties_are_counted_and_decide_nothing():
    found = Preference(first=0, second=0, same=7)
    assert (found.score, found.p) == (None, 1.0)
    assert found.to_json() == {"preference": None, "first": 0, "second": 0, "same": 7, "clips": 7, "p": 1.0}
    body = Preference(first=2, second=6, same=4).to_json()
    assert body["preference"]["value"] == 0.75
    assert body["preference"]["count"] == 8
    assert (body["clips"], body["same"]) == (12, 4)


def test_the_last_choice_counts_and_none_after_the_names_were_shown():
    trials = make_trials(utterances(10), seed=0, form="written", random=10)
    one, two, three = trials[:3]
    revealed: Entry = {"kind": "revealed", "listener": "dana", "at": AT}
    entries: list[Entry] = [
        answer(one, "first"),
        answer(one, "second"),
        answer(two, "same"),
        revealed,
        answer(two, "first"),
        answer(three, "first"),
        answer(three, "first", by="ben"),
    ]
    votes = count_votes(trials, entries, where="x")
    ids = [trial.utterance.clip.id for trial in trials]
    assert votes.random == {"dana": {ids[0]: "second", ids[1]: "same"}, "ben": {ids[2]: "first"}}
    assert votes.unblinded == 2


def test_several_listeners_have_one_vote_a_clip():
    trials = make_trials(utterances(4), seed=0, form="written", random=4)
    said: dict[str, list[Vote]] = {
        "ana": ["second", "second", "first", "same"],
        "ben": ["second", "first", "first", "second"],
        "cyd": ["second", "second", "same", "first"],
    }
    entries = [
        answer(trial, vote, by=name) for name, row in said.items() for trial, vote in zip(trials, row, strict=True)
    ]
    votes = count_votes(trials, entries, where="x")
    assert list(majority(list(votes.random.values())).values()) == ["second", "second", "first", "same"]
    assert tally(majority(list(votes.random.values()))) == Preference(first=1, second=2, same=1)
    assert votes.agreement == (5, 12)


def test_choices_on_other_clips_and_none_at_all_are_refused():
    trials = make_trials(utterances(4), seed=0, form="written")
    with pytest.raises(ManifestError, match="'c99', which was not asked about"):
        count_votes(trials, [choice("c99", "left")], where="x")
    empty: list[Any] = []
    with pytest.raises(ManifestError, match="no blind choice"):
        count_votes(trials, empty, where="x")
