"""What an ablation says: paired differences against a baseline, corrected for their number, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonotune.errors import SonotuneError
from sonotune.evaluation.compare import compare
from sonotune.metrics.paired import POWER_FACTOR, holm, least_p, power_factor
from sonotune.metrics.scores import change_of, in_percent, score_title, shown_number, shown_unit
from sonotune.registry import SCORES

LEVEL = 0.05
EQUAL_SHARE = 0.005
"""How far apart the trainable parameters of two arms may be to be called equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What an arm must beat before anything is claimed for it.

    Attributes:
        controls: Arms that have what it has, but for its evidence.
        meaning: What it would mean.
    """

    controls: tuple[str, ...]
    meaning: str


_RANKS = Claim(
    controls=("uniform", "shuffled", "random_1", "random_2", "random_3"),
    meaning="its evidence, not only its spread of ranks, helps here",
)
CLAIMS: Mapping[str, Claim] = {
    "entropy_half": _RANKS,
    "entropy_full": _RANKS,
    "measured": Claim(
        controls=("uniform_share", "uniform_large"),
        meaning="where its parameters are, not only their number, helps here",
    ),
}
"""By arm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """The chosen runs of an arm.

    Attributes:
        name: The arm.
        runs: Seed -> run directory.
        parameters: Trainable parameters, of the first run.
    """

    name: str
    runs: Mapping[int, Path]
    parameters: int


def judge(
    candidates: Sequence[Candidate], baseline: str, *, score: str, tuned: bool, resamples: int = 10_000, seed: int = 0
) -> list[dict[str, Any]]:
    """Compare every arm with the baseline on the test clips, with Holm's correction over the arms.

    Args:
        candidates: Arms with runs, the baseline among them.
        baseline: What the others are measured against.
        score: `wer`, `cer`, `accuracy`, or a name in `registry.SCORES`.
        tuned: Whether every arm has a learning rate of its own.
        resamples: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        A JSON-ready row per arm but the baseline; with `error` alone where the two cannot be compared.
    """
    by_name = {candidate.name: candidate for candidate in candidates}
    if baseline not in by_name:
        return []
    others = [candidate for candidate in candidates if candidate.name != baseline]
    return _family([(by_name[baseline], other) for other in others], score, tuned, resamples, seed)


def judge_claims(
    candidates: Sequence[Candidate], *, score: str, tuned: bool, resamples: int = 10_000, seed: int = 0
) -> list[dict[str, Any]]:
    """For every arm of `CLAIMS`: does it beat all of its controls that were run?

    Returns:
        JSON-ready rows of `arm`, `comparisons` (Holm over the controls), `holds` and `sentence`.
    """
    by_name = {candidate.name: candidate for candidate in candidates}
    rows = []
    for name, claim in CLAIMS.items():
        present = [by_name[control] for control in claim.controls if control in by_name]
        if name not in by_name or not present:
            continue
        found = _family([(control, by_name[name]) for control in present], score, tuned, resamples, seed)
        beaten = [row["against"] for row in found if row.get("outcome") == "better"]
        holds = len(beaten) == len(claim.controls)
        unbeaten = [control.name for control in present if control.name not in beaten]
        if holds:
            sentence = f"{name} is better than every control ({', '.join(beaten)}): {claim.meaning}."
        elif unbeaten:
            sentence = f"Nothing is claimed for {name}: it is not shown to be better than {', '.join(unbeaten)}."
        else:  # an arm that was not run is not spoken of
            sentence = f"Nothing is claimed for {name}: it is better than {', '.join(beaten)}, and not all of its "
            sentence += "controls were run."
        rows.append({"arm": name, "comparisons": found, "holds": holds, "sentence": sentence})
    return rows


def _family(
    pairs: Sequence[tuple[Candidate, Candidate]], score: str, tuned: bool, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of comparisons that are corrected together."""
    rows = [_row(first, second, score, resamples, seed) for first, second in pairs]
    sound = [row for row in rows if "error" not in row]
    for row, adjusted in zip(sound, holm([row["p"] for row in sound]), strict=True):
        row |= {"p_holm": adjusted, "comparisons": len(sound), "tuned": tuned}
        row["minimum_detectable_holm"] = row["minimum_detectable"] * power_factor(len(sound)) / POWER_FACTOR
        row["attainable"] = least_p(row["blocks"]) * len(sound) < LEVEL
        row["outcome"] = outcome(row)
    for row in rows:
        row["sentence"] = sentence(row)
    return rows


def _row(first: Candidate, second: Candidate, score: str, resamples: int, seed: int) -> dict[str, Any]:
    common = [each for each in first.runs if each in second.runs]
    row: dict[str, Any] = {"arm": second.name, "against": first.name, "score": score}
    if not common:
        return row | {"error": "the two arms have no seed in common"}
    try:
        found = compare(
            [first.runs[each] for each in common],
            [second.runs[each] for each in common],
            moment="test",
            same_seeds=True,
            scores=(score,) if score in SCORES else None,
            resamples=resamples,
            seed=seed,
            slices=False,
        )
    except SonotuneError as error:
        return row | {"error": str(error)}
    # Predictions of several classes a clip are compared by accuracy; their mean average precision is no sum over clips.
    name = score if score in found.differences else next(iter(found.differences))
    parameters = {"score": name, "parameters": [first.parameters, second.parameters]}
    return row | found.differences[name].to_json() | parameters


def outcome(row: Mapping[str, Any]) -> str:
    """`better`, `worse` or `no difference`: the interval must leave out 0 and Holm's p be below the level."""
    change = change_of(row) if row["p_holm"] < LEVEL else "none"
    return "no difference" if change == "none" else change


def sentence(row: Mapping[str, Any]) -> str:
    """One comparison in words."""
    pair = f"{row['arm']} and {row['against']}"
    if "error" in row:
        return f"{pair} could not be compared: {row['error'].rstrip('.')}."
    name = score_title(row["score"], row)
    name = name if name[1:] != name[1:].lower() else name.lower()  # WER and mAP stay as they are
    if row["outcome"] == "no difference" and not row["attainable"]:
        head = f"No difference in {name} between {pair} could be shown by {_plural(row['blocks'], row['resampled'])} "
        head += f"after Holm's correction over {row['comparisons']} comparisons, however large"
    elif row["outcome"] == "no difference":
        head = f"No difference in {name} detected between {pair}; the minimum detectable effect was "
        head += f"{shown_number(row, row['minimum_detectable_holm']):.2f}{_pp(row)}"
        if not row["low"] <= 0 <= row["high"]:
            head += ", and the interval leaves out 0 only before the correction for several comparisons"
    else:
        head = f"{row['arm']} has a {row['outcome']} {name} than {row['against']}"
        if row["resampled"] == "clip":
            head += " on these clips, which is not shown for other speakers"
    return f"{head}: {_numbers(row)}."


def _numbers(row: Mapping[str, Any]) -> str:
    """The change, its interval, and on what it stands."""
    corrected = f", p {_p(row['p_holm'])} after Holm's correction over {row['comparisons']} comparisons"
    facts = [
        f"95 % CI {_signed(row, 'low')} to {_signed(row, 'high')}",
        f"p {_p(row['p'])}{corrected if row['comparisons'] > 1 else ''}",
        _units(row),
        _plural(min(row["seeds"]), "seed"),
        "learning rate tuned per arm" if row["tuned"] else "learning rate not tuned",
        _parameters(*row["parameters"]),
    ]
    return f"Δ = {_signed(row, 'value')}{_pp(row)} ({', '.join(facts)})"


def _units(row: Mapping[str, Any]) -> str:
    if not row["speakers"]:
        return f"{row['count']} clips of unknown speakers"
    return _plural(row["speakers"], "speaker" if row["resampled"] == "clip" else row["resampled"])


def _plural(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _parameters(first: int, second: int) -> str:
    if first and abs(second - first) <= EQUAL_SHARE * first:
        return f"trainable parameters equal to {100 * abs(second - first) / first:.1f} %"
    return f"{second:,} trainable parameters against {first:,}"


def _signed(row: Mapping[str, Any], key: str) -> str:
    return f"{shown_number(row, row[key]):+.2f}".replace("-", "\u2212")


def _pp(row: Mapping[str, Any]) -> str:
    """The unit of a difference: percentage points, or that of the score, with a space before it."""
    unit = "pp" if in_percent(row) else shown_unit(row)
    return f" {unit}" if unit else ""


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
