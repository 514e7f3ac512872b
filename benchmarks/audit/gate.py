"""Operating characteristic of the audit gate: how often it decides wrongly, at true shares of bad clips that are known.

Each repetition draws trusted clips with scores of two statistics, corrupts them in five ways, calibrates the detector,
and then looks up to three times at a stratified sample of a corpus, which doubles from look to look. Nothing is
aligned: scores are drawn, which is what makes thousands of repetitions possible.

A decision is wrong where it is PROCEED at a true share of `proceed_below` or more, or STOP at one of `stop_above` or
less. Beside the rule of the package stand: the same without the uncertainty of sensitivity and specificity (`plug-in`),
the same with both at the far ends of their intervals (`far ends`), and two rules on points: of flagged clips as they
are, and of the corrected share, each on the first look.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonotune.audit.calibration import calibrate
from sonotune.audit.gate import BadShare, Detector, GateSettings, StratumCount, bad_share, decision_of
from sonotune.audit.scores import ClipScores
from sonotune.metrics.intervals import wilson
from sonotune.runs import code_version, environment

SHARES = (0.05, 0.08, 0.10, 0.12, 0.15, 0.20)
POPULATION = 20_000
WEIGHTS = (0.6, 0.3, 0.1)
SPREAD = (0.7, 1.2, 2.2)  # the share of bad clips in each stratum over that of the corpus
SAMPLED = (0.4, 0.4, 0.2)
SHIFTS = {"wrong": 6.0, "deleted": 3.4, "inserted": 3.0, "substituted": 2.0, "truncated": 3.2}
RULES = ("gate", "plug-in", "far ends", "point, flagged", "point, corrected")


def main() -> None:
    """Run the scenarios and write one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("gate.json"))
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--first", type=int, default=700, help="clips of the first look")
    parser.add_argument("--trusted", type=int, nargs="*", default=[200, 500])
    options = parser.parse_args()
    started, rows = time.monotonic(), []
    for trusted in options.trusted:
        for detector in ("scores", "rates"):
            rows += scenario(detector, trusted, options.first, options.repetitions)
            print(table(rows[-len(SHARES) * len(RULES) :]), flush=True)
    result = {
        "command": " ".join(sys.argv),
        "code": code_version(),
        "environment": environment(),
        "processors": os.cpu_count(),
        "seconds": round(time.monotonic() - started, 1),
        "settings": {
            "population": POPULATION,
            "weights": WEIGHTS,
            "spread": SPREAD,
            "sampled": SAMPLED,
            "shifts": SHIFTS,
            "looks": GateSettings().looks,
            "level": GateSettings().level,
        },
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def scenario(detector: str, trusted: int, first: int, repetitions: int) -> list[dict[str, Any]]:
    """Decisions of every rule at every share.

    Args:
        detector: `scores` calibrates on drawn scores; `rates` draws how many of the trusted clips a detector with
            sensitivity 0.85 and specificity 0.95 finds.
        trusted: Clips it is calibrated on.
        first: Clips of the first look.
        repetitions: Repetitions of each share.
    """
    decisions: dict[tuple[float, str], Counter[str]] = {(share, rule): Counter() for share in SHARES for rule in RULES}
    clips: Counter[tuple[float, str]] = Counter()
    inside: Counter[float] = Counter()
    true_rates = []
    for repetition in range(repetitions):
        generator = np.random.default_rng((repetition, trusted, len(detector)))
        known, flag_good, flag_bad = (by_scores if detector == "scores" else by_rates)(generator, trusted)
        true_rates.append((flag_bad, 1 - flag_good))
        for share in SHARES:
            found = looks(generator, share, flag_good, flag_bad, first)
            for rule in RULES:
                decision, seen = decide(rule, found, known)
                decisions[share, rule][decision] += 1
                clips[share, rule] += seen
            once = bad_share(found[0], known, level=0.95)
            inside[share] += once.low <= share <= once.high
    sensitivity, specificity = np.mean(true_rates, axis=0)
    return [
        {
            "detector": detector,
            "trusted": trusted,
            "repetitions": repetitions,
            "sensitivity": float(sensitivity),
            "specificity": float(specificity),
            "share": share,
            "rule": rule,
            **{name: decisions[share, rule][name] / repetitions for name in ("PROCEED", "CAUTION", "STOP")},
            "wrong": wrong(share, decisions[share, rule]) / repetitions,
            "clips": clips[share, rule] / repetitions,
            "inside_95": inside[share] / repetitions,
        }
        for share in SHARES
        for rule in RULES
    ]


def wrong(share: float, decisions: Counter[str]) -> int:
    """Decisions that the true share forbids."""
    settings = GateSettings()
    return (decisions["PROCEED"] if share >= settings.proceed_below else 0) + (
        decisions["STOP"] if share <= settings.stop_above else 0
    )


def by_scores(generator: np.random.Generator, trusted: int) -> tuple[Detector, float, float]:
    """A detector calibrated by the package, and the true chances that it flags a good and a bad clip."""
    found = calibrate(
        drawn(generator.standard_normal((trusted, 2))),
        {name: drawn(generator.standard_normal((trusted, 2)) - (shift, shift / 2)) for name, shift in SHIFTS.items()},
        statistics=("min_window_llr", "mean_llr"),
    )
    thresholds = [found.thresholds.get(name, -math.inf) for name in ("min_window_llr", "mean_llr")]

    def flagged(shift: float) -> float:
        below = [NormalDist(-by, 1).cdf(at) for at, by in zip(thresholds, (shift, shift / 2), strict=True)]
        return 1 - (1 - below[0]) * (1 - below[1])

    assert found.detector is not None
    return found.detector, flagged(0.0), float(np.mean([flagged(shift) for shift in SHIFTS.values()]))


def drawn(values_N2: NDArray[np.float64]) -> list[ClipScores]:
    return [
        ClipScores(clip_id="", duration_s=1, speech_s=1, min_window_llr=float(one), mean_llr=float(other))
        for one, other in values_N2
    ]


def by_rates(generator: np.random.Generator, trusted: int) -> tuple[Detector, float, float]:
    detector = Detector(
        sensitivity=generator.binomial(trusted, 0.85) / trusted,
        specificity=generator.binomial(trusted, 0.95) / trusted,
        sensitivity_count=trusted,
        specificity_count=trusted,
    )
    return detector, 0.05, 0.85


def looks(
    generator: np.random.Generator, share: float, flag_good: float, flag_bad: float, first: int
) -> list[list[StratumCount]]:
    """What three looks find, each of which contains the one before."""
    sizes = [round(weight * POPULATION) for weight in WEIGHTS]
    bad = [round(share * spread * size) for spread, size in zip(SPREAD, sizes, strict=True)]
    good = [size - one for size, one in zip(sizes, bad, strict=True)]
    seen, flagged = [0] * 3, [0] * 3
    made = []
    for look in range(GateSettings().looks):
        for index, size in enumerate(sizes):
            more = min(round(first * 2**look * SAMPLED[index]), size) - seen[index]
            bad_here = int(generator.hypergeometric(bad[index], good[index], more)) if more else 0
            flagged[index] += int(
                generator.binomial(bad_here, flag_bad) + generator.binomial(more - bad_here, flag_good)
            )
            bad[index] -= bad_here
            good[index] -= more - bad_here
            seen[index] += more
        made.append(
            [
                StratumCount(name=str(index), population=sizes[index], sampled=seen[index], flagged=flagged[index])
                for index in range(3)
            ]
        )
    return made


def decide(rule: str, found: list[list[StratumCount]], known: Detector) -> tuple[str, int]:
    """What a rule decides, and after how many clips."""
    settings = GateSettings(rule="point" if rule.startswith("point") else "interval")
    for look, counts in enumerate(found, start=1):
        if rule == "plug-in":
            exact = replace(known, sensitivity_count=10**9, specificity_count=10**9)
            share = bad_share(counts, exact, level=settings.look_level)
        elif rule == "far ends":
            share = far_ends(counts, known, settings.look_level)
        else:
            share = bad_share(counts, None if rule == "point, flagged" else known, level=settings.look_level)
        decision, _ = decision_of(share, settings, look=look)
        if decision != "SAMPLE_MORE":
            return decision, share.count
    raise AssertionError("the last look decides")


def far_ends(counts: list[StratumCount], known: Detector, level: float) -> BadShare:
    """The corrected ends with sensitivity and specificity where they move them furthest."""
    flagged = bad_share(counts, None, level=level)
    (sens_low, sens_high), (spec_low, spec_high) = (
        wilson(known.sensitivity * known.sensitivity_count, known.sensitivity_count, level=level),
        wilson(known.specificity * known.specificity_count, known.specificity_count, level=level),
    )
    low = replace(known, sensitivity=sens_high, specificity=spec_low).corrected(flagged.low)
    high = replace(known, sensitivity=sens_low, specificity=spec_high).corrected(flagged.high)
    return replace(
        flagged,
        value=min(max(known.corrected(flagged.value), 0.0), 1.0),
        low=min(max(low, 0.0), 1.0),
        high=min(max(high, 0.0), 1.0),
        correction="applied",
    )


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{rows[0]['trusted']} trusted clips, {rows[0]['detector']}, sensitivity {rows[0]['sensitivity']:.3f}, "
        f"specificity {rows[0]['specificity']:.3f}",
        "| true share | rule | PROCEED | CAUTION | STOP | wrong | clips looked at | interval holds the truth |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        inside = f"{row['inside_95']:.1%}" if row["rule"] == "gate" else ""
        lines.append(
            f"| {row['share']:.0%} | {row['rule']} | {row['PROCEED']:.1%} | {row['CAUTION']:.1%} | {row['STOP']:.1%} | "
            f"{row['wrong']:.1%} | {row['clips']:,.0f} | {inside} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
