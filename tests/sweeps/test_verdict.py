"""The words of a verdict: better, worse, no difference, and what must be beaten before anything is claimed."""

from __future__ import annotations

from typing import Any

import pytest

from sonotune.sweeps.verdict import outcome, sentence


def row(**changes: Any) -> dict[str, Any]:
    return {
        "arm": "entropy_half",
        "against": "uniform",
        "score": "wer",
        "value": -0.012,
        "low": -0.02,
        "high": -0.004,
        "p": 0.004,
        "p_holm": 0.012,
        "comparisons": 3,
        "tuned": True,
        "better": "lower",
        "attainable": True,
        "minimum_detectable_holm": 0.009,
        "resampled": "speaker",
        "blocks": 6,
        "speakers": 6,
        "count": 300,
        "seeds": [3, 3],
        "parameters": [100_000, 100_200],
        **changes,
    }


def told(**changes: Any) -> str:
    made = row(**changes)
    made["outcome"] = outcome(made)
    return sentence(made)


def test_a_difference_is_told_with_all_that_it_stands_on():
    assert told() == (
        "entropy_half has a better WER than uniform: Δ = \u22121.20 pp (95 % CI \u22122.00 to \u22120.40, p = 0.004, "
        "p = 0.012 after Holm's correction over 3 comparisons, 6 speakers, 3 seeds, learning rate tuned per arm, "
        "trainable parameters equal to 0.2 %)."
    )


def test_worse_is_told_as_plainly():
    text = told(value=0.012, low=0.004, high=0.02)
    assert text.startswith("entropy_half has a worse WER than uniform: Δ = +1.20 pp (95 % CI +0.40 to +2.00")


def test_an_interval_over_zero_is_no_difference_and_says_what_could_be_seen():
    text = told(low=-0.03, high=0.006, p=0.2, p_holm=0.6)
    assert text.startswith(
        "No difference in WER detected between entropy_half and uniform; the minimum detectable effect was 0.90 pp: "
    )
    assert "better" not in text


def test_what_holms_correction_takes_away_is_no_difference():
    text = told(p=0.03, p_holm=0.09)
    assert text.startswith("No difference in WER detected")
    assert "only before the correction for several comparisons" in text


def test_too_few_speakers_to_show_anything_are_named():
    text = told(low=-0.03, high=0.006, p=0.06, p_holm=0.6, comparisons=10, blocks=8, attainable=False)
    assert text.startswith(
        "No difference in WER between entropy_half and uniform could be shown by 8 speakers after Holm's correction "
        "over 10 comparisons, however large: "
    )


def test_more_comparisons_need_larger_effects(plan, sit, fake):
    """Nine arms beside a baseline: p below 0.05 / 9 takes 2.77 + 0.84 standard errors and not 2.8."""
    body = sit(plan("ranks"), fake(errors_of=lambda arm, seed, clip: 2 + (clip + len(arm)) % 3))
    rows = body["comparisons"]
    factor = {round(row["minimum_detectable_holm"] / row["minimum_detectable"], 3) for row in rows}
    assert len(rows) == 13
    assert factor == {round((2.8905 + 0.8416) / 2.8, 3)}
    assert all(row["attainable"] is (2.0**-7 * 13 < 0.05) for row in rows)


def test_a_single_comparison_needs_no_correction():
    assert "Holm" not in told(comparisons=1, p_holm=0.004)
    assert "p < 0.001," in told(comparisons=1, p=0.0001, p_holm=0.0001)


@pytest.mark.parametrize(("value", "expected"), [(0.02, "better"), (-0.02, "worse")])
def test_higher_accuracy_is_better(value: float, expected: str):
    text = told(score="accuracy", better="higher", value=value, low=value - 0.01, high=value + 0.01)
    assert f"has a {expected} accuracy than" in text


def test_what_it_does_not_stand_on_is_said():
    one_voice = told(resampled="clip", speakers=1)
    assert one_voice.startswith(
        "entropy_half has a better WER than uniform on these clips, which is not shown for other speakers: "
    )
    assert ", 1 speaker, 3 seeds" in one_voice
    assert "300 clips of unknown speakers" in told(resampled="clip", speakers=0)
    assert "1 seed, learning rate not tuned" in told(seeds=[1, 1], tuned=False)
    assert "201,000 trainable parameters against 79,000" in told(parameters=[79_000, 201_000])


def test_what_cannot_be_compared_says_why():
    broken = {"arm": "eva", "against": "uniform", "score": "wer", "error": "the two arms have no seed in common"}
    assert sentence(broken) == "eva and uniform could not be compared: the two arms have no seed in common."


def test_claims_need_every_control_beaten(plan, sit, fake, tmp_path):
    gains, folder = {"entropy_half": 2, "random_1": 1}, tmp_path

    def errors(arm: str, seed: int, clip: int) -> int:
        gain = gains.get(arm, 0)
        return 3 - gain * (clip % 4 > 0) + (clip % 11 == seed)

    controls = ("uniform", "shuffled", "random_1", "random_2", "random_3")
    body = sit(plan("uniform,entropy_half,random_1"), fake(errors_of=errors))
    [claim] = body["claims"]
    assert not claim["holds"]  # it beats both, and the others were not run
    assert claim["sentence"].endswith(": it is better than uniform, random_1, and not all of its controls were run.")
    assert not any(name in sentence for name in ("shuffled", "random_2") for sentence in body["verdict"])
    gains.update(random_2=1, random_3=0, shuffled=1)
    body = sit(plan(",".join(("entropy_half", *controls)), folder=folder / "all"), fake(errors_of=errors))
    [claim] = body["claims"]
    assert claim["holds"]
    assert {row["against"] for row in claim["comparisons"]} == set(controls)
    assert f"entropy_half is better than every control ({', '.join(controls)})" in body["verdict"][-1]
    gains["shuffled"] = 2
    body = sit(plan(",".join(("entropy_half", *controls)), folder=folder / "none"), fake(errors_of=errors))
    [claim] = body["claims"]
    assert not claim["holds"]
    assert claim["sentence"].startswith("Nothing is claimed for entropy_half")
    assert claim["sentence"].endswith("is not shown to be better than shuffled.")
