"""How well scores of an alignment tell wrong transcripts from right ones, on recordings whose transcripts are right.

    python benchmarks/audit/separation.py NAME MANIFEST --model CHECKPOINT --clips 150

Each clip is scored with its own transcript and with five corrupted ones. For every statistic and corruption: the area
under the curve, and the share found where 5 % of the right clips are flagged. Then what an audit does with sets of
statistics, `default` being what it takes: thresholds are calibrated on all clips but a twentieth and tried on that one,
in turn (with few clips a half of them allows a single false positive, which the first statistic takes alone), and of a
corpus in which every tenth clip is corrupted, how many of the worst clips are.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sonotune.alignment.base import AlignerSettings
from sonotune.audit.calibration import DEFAULT_STATISTICS, calibrate, oriented, p_values
from sonotune.audit.corruption import Corruption, Corruptor
from sonotune.audit.measure import Measurer
from sonotune.audit.opening import open_measurer
from sonotune.audit.reference import rated
from sonotune.audit.scores import STATISTICS, ClipScores, fit_rates
from sonotune.data.manifest import read_manifest
from sonotune.metrics.intervals import wilson
from sonotune.runs import code_version, environment, generator
from sonotune.types import Clip

CORRUPTIONS: Final = (
    Corruption(kind="wrong", share=1.0),
    Corruption(kind="deleted", share=0.2),
    Corruption(kind="inserted", share=0.2),
    Corruption(kind="substituted", share=0.2),
    Corruption(kind="truncated", share=0.2),
)
SETS: Final[Mapping[str, tuple[str, ...]]] = {
    "default": DEFAULT_STATISTICS,
    "token_posterior": ("token_posterior",),
    "min_window_llr": ("min_window_llr",),
    "mean_llr": ("mean_llr",),
    "cer": ("cer",),
    "both ratios": ("min_window_llr", "mean_llr"),
    "ratios and end": ("min_window_llr", "mean_llr", "total_unaligned_s"),
    "ratios, cer": ("min_window_llr", "mean_llr", "cer"),
    "ratios, cer, unaligned": ("min_window_llr", "mean_llr", "cer", "total_unaligned_s"),
    "ratios, rate, unaligned": ("min_window_llr", "mean_llr", "rate_deviation", "total_unaligned_s"),
    "mean first": ("mean_llr", "min_window_llr", "coverage"),
    "probability, coverage": ("mean_log_probability", "min_window_log_probability", "coverage"),
    "default, probability": (*DEFAULT_STATISTICS, "mean_log_probability"),
    "default, rate": (*DEFAULT_STATISTICS, "rate_deviation"),
}
UNTRANSCRIBED: Final = ("deleted 20 %", "truncated 20 %")
DRAWS: Final = 200
FOLDS: Final = 20
Scores = Sequence[ClipScores | None]
Forms = Mapping[int, ClipScores | None]
"""Place of a clip -> scores of its corrupted transcript; a transcript too short for a corruption has no such form."""


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--clips", type=int, default=150)
    parser.add_argument("--max-duration", type=float, default=29.0)
    parser.add_argument("--language")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    clips = read_manifest(options.manifest, allow_outside_root=True)
    clips = [clip for clip in clips if clip.text and clip.duration_s <= options.max_duration]
    drawn = generator(options.seed, "separation").permutation(len(clips))[: options.clips]
    clips = [clips[index] for index in sorted(drawn.tolist())]
    opened = open_measurer(
        options.model, clips, settings=AlignerSettings(language=options.language), file=options.cache
    )
    started = time.monotonic()
    right, wrong = _measured(clips, opened.measurer, options.seed)
    result = {
        "name": options.name,
        "command": " ".join(["separation.py", *(re.sub(r"/\S*/", "", word) for word in sys.argv[1:])]),
        "code": code_version(),
        "environment": environment(),
        "clips": len(clips),
        "seconds_of_audio": sum(clip.duration_s for clip in clips),
        "seconds": time.monotonic() - started,
        "unaligned": sum(one is None for one in right),
        # How well the aligner reads this speech, which is what its scores can be as good as.
        "median_cer": float(np.median([one.cer for one in right if one is not None and one.cer is not None])),
        "forms": {kind: len(forms) for kind, forms in wrong.items()},
        "statistics": _statistics(right, wrong),
        "sets": {name: _together(right, wrong, chosen) for name, chosen in SETS.items()},
        "untranscribed": _untranscribed(right, wrong),
        "flags": {name: _flags(right, wrong, chosen) for name, chosen in SETS.items()},
        "worst": {name: _worst(right, wrong, chosen, options.seed) for name, chosen in SETS.items()},
    }
    options.results.mkdir(exist_ok=True)
    (options.results / f"separation_{options.name}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(_table(result))


def _measured(clips: Sequence[Clip], measurer: Measurer, seed: int) -> tuple[Scores, dict[str, Forms]]:
    corruptor = Corruptor(clips, seed=seed)
    forms = [(place, "", clip) for place, clip in enumerate(clips)]
    for corruption in CORRUPTIONS:
        for place, clip in enumerate(clips):
            text = corruptor.corrupt(clip, corruption).text
            if text is not None:
                forms.append((place, corruption.name, replace(clip, id=f"{clip.id} {corruption.name}", text=text)))
    forms.sort(key=lambda form: form[0])  # all transcripts of a recording in a row, so that it is computed once
    rows = measurer.measure([clip for _, _, clip in forms], doing="aligning, right and corrupted")
    found = {(place, kind): row.scores for (place, kind, _), row in zip(forms, rows, strict=True)}
    rates = fit_rates([one for (_, kind), one in found.items() if not kind and one is not None])
    scores = dict(zip(found, rated(list(found.values()), rates), strict=True))
    right = [scores[place, ""] for place in range(len(clips))]
    return right, {
        one.name: {place: scores[place, one.name] for place in range(len(clips)) if (place, one.name) in scores}
        for one in CORRUPTIONS
    }


def _statistics(right: Scores, wrong: Mapping[str, Forms]) -> dict[str, Any]:
    return {
        name: _separated(
            oriented(right, name), {kind: oriented(list(forms.values()), name) for kind, forms in wrong.items()}
        )
        for name in STATISTICS
    }


def _separated(good_N: NDArray[np.float64], bad: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Area under the curve, and the share found where 5 % of the right clips are flagged."""
    limit = np.quantile(good_N, 0.05)
    rows = {
        kind: {"auc": _auc(good_N, values), "recall": float((values < limit).mean()), "clips": len(values)}
        for kind, values in bad.items()
    }
    together = np.concatenate(list(bad.values()))
    low, high = wilson(int((together < limit).sum()), len(together))
    return {"kinds": rows, "recall": float((together < limit).mean()), "low": low, "high": high}


def _together(right: Scores, wrong: Mapping[str, Forms], chosen: Sequence[str]) -> dict[str, Any]:
    """The same of a set: clips by their smallest p value among the right ones, itself left out, then by the next."""
    parts = [right, *(list(forms.values()) for forms in wrong.values())]
    p_values_AS = [np.stack([p_values(right, part, name) for name in chosen], axis=1) for part in parts]
    count = len(right)
    p_values_AS[0] = (p_values_AS[0] * (count + 1) - 1) / count
    keys_AS = np.sort(np.concatenate(p_values_AS), axis=1)
    _, rank_A = np.unique(keys_AS, axis=0, return_inverse=True)
    good, *bad = np.split(rank_A.ravel().astype(np.float64), np.cumsum([len(part) for part in parts[:-1]]))
    return _separated(good, dict(zip(wrong, bad, strict=True)))


def _auc(good_N: NDArray[np.float64], bad_M: NDArray[np.float64]) -> float:
    """Chance that a right clip has the higher value; half of it where they are the same."""
    return float((good_N[:, None] > bad_M).mean() + 0.5 * (good_N[:, None] == bad_M).mean())


def _untranscribed(right: Scores, wrong: Mapping[str, Forms]) -> dict[str, Any]:
    """How well each score tells clips with speech that has no text; the interval resamples clips with their forms."""
    table: dict[str, Any] = {}
    places = [(kind, place) for kind in UNTRANSCRIBED for place in wrong[kind]]
    owner = np.array([place for _, place in places])
    for name in ("coverage", "total_unaligned_s", "longest_unaligned_s", "min_window_llr", "mean_llr"):
        good, bad = oriented(right, name), oriented([wrong[kind][place] for kind, place in places], name)
        drawn = []
        for draw in range(DRAWS):
            rows = generator(0, "untranscribed", draw).integers(0, len(good), len(good))
            times = np.bincount(rows, minlength=len(good))
            drawn.append(_auc(good[rows], np.repeat(bad, times[owner])))
        low, high = np.quantile(drawn, [0.025, 0.975])
        table[name] = {"auc": _auc(good, bad), "low": float(low), "high": float(high), "forms": len(bad)}
    return table


def _flags(right: Scores, wrong: Mapping[str, Forms], chosen: Sequence[str]) -> dict[str, Any]:
    """Calibrated on all clips but those of a fold, tried on these."""
    false = 0
    found, tried = dict.fromkeys(wrong, 0), dict.fromkeys(wrong, 0)
    for fold in range(FOLDS):
        made = calibrate([one for place, one in enumerate(right) if place % FOLDS != fold], {}, statistics=chosen)
        false += sum(bool(made.flags(one)) for one in right[fold::FOLDS])
        for kind, forms in wrong.items():
            part = [one for place, one in forms.items() if place % FOLDS == fold]
            found[kind] += sum(bool(made.flags(one)) for one in part)
            tried[kind] += len(part)
    kinds = {kind: found[kind] / max(1, tried[kind]) for kind in wrong}
    low, high = wilson(sum(found.values()), sum(tried.values()))
    return {
        "false_positive_rate": false / len(right),
        "kinds": kinds,
        "recall": float(np.mean(list(kinds.values()))),
        "low": low,
        "high": high,
    }


def _worst(right: Scores, wrong: Mapping[str, Forms], chosen: Sequence[str], seed: int) -> dict[str, Any]:
    """Precision of the worst tenth where a tenth is corrupted, by the smallest p value; mean and spread over draws.

    The order of the worst clips is that of one corpus, so `low` and `high` are the 2.5 and 97.5 % of the draws.
    """
    count = len(right)
    bad_count = max(1, count // 10)
    p_of, tie_of = _ranked(right, right, chosen)
    bad = {
        (place, kind): (p, tie)
        for kind, forms in wrong.items()
        for place, p, tie in zip(forms, *_ranked(right, list(forms.values()), chosen), strict=True)
    }
    precisions = []
    for draw in range(DRAWS):
        rng = generator(seed, "worst", draw)
        p, tie, is_bad = p_of.copy(), tie_of.copy(), np.zeros(count, dtype=bool)
        for place in rng.permutation(count)[:bad_count].tolist():
            kinds = [kind for kind in wrong if (place, kind) in bad]
            p[place], tie[place] = bad[place, kinds[int(rng.integers(len(kinds)))]]
            is_bad[place] = True
        precisions.append(is_bad[np.lexsort((tie, p))[:bad_count]].mean())
    low, high = np.quantile(precisions, [0.025, 0.975])
    mean = float(np.mean(precisions))
    return {"precision": mean, "low": float(low), "high": float(high), "worst": bad_count, "draws": DRAWS}


def _ranked(right: Scores, scores: Scores, chosen: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The smallest p value of each clip, and what decides between clips that have the same."""
    p = np.min([p_values(right, scores, name) for name in chosen], axis=0)
    return p, np.sum([oriented(scores, name).clip(-1e3, 1e3) for name in chosen], axis=0)


def _table(result: Mapping[str, Any]) -> str:
    kinds = list(next(iter(result["statistics"].values()))["kinds"])
    lines = [
        f"{result['name']}: {result['clips']} clips of {result['seconds_of_audio']:.0f} s in {result['seconds']:.0f} s",
        f"median CER of the aligner's own text of them: {result['median_cer']:.2f}",
        "AUC / recall".ljust(28) + "".join(kind.rjust(18) for kind in kinds) + "all".rjust(8),
    ]
    for name, row in (*result["statistics"].items(), *result["sets"].items()):
        cells = [f"{cell['auc']:.3f} / {cell['recall']:.2f}".rjust(18) for cell in row["kinds"].values()]
        lines.append(name.ljust(28) + "".join(cells) + f"{row['recall']:.2f}".rjust(8))
    for name, row in result["untranscribed"].items():
        lines.append(f"untranscribed: {name}  AUC {row['auc']:.3f} ({row['low']:.3f} to {row['high']:.3f})")
    lines.append("calibrated on the other folds (false positives)")
    for name, row in result["flags"].items():
        cells = [f"{cell:.2f}".rjust(18) for cell in row["kinds"].values()]
        worst = result["worst"][name]["precision"]
        lines.append(
            f"{name} ({row['false_positive_rate']:.3f})".ljust(28)
            + "".join(cells)
            + f"{row['recall']:.2f}".rjust(8)
            + f" ({row['low']:.2f} to {row['high']:.2f})   worst tenth {worst:.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
