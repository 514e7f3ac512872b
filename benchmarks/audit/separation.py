"""How well scores of an alignment tell wrong transcripts from right ones, on recordings whose transcripts are right.

    python benchmarks/audit/separation.py NAME MANIFEST --model CHECKPOINT --clips 150

Each clip is scored with its own transcript and with five corrupted ones. For every statistic and corruption: the area
under the curve, and the share found where 5 % of the right clips are flagged. Then what an audit does with it:
thresholds are calibrated on one half of the clips and tried on the other, both ways, and of a corpus in which every
tenth clip is corrupted, how many of the worst clips are.
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

from sonotune.alignment.base import AlignerSettings
from sonotune.alignment.open import open_aligner
from sonotune.audit.calibration import calibrate, oriented, p_values
from sonotune.audit.corruption import Corruption, Corruptor
from sonotune.audit.measure import Measurer
from sonotune.audit.scores import STATISTICS, ClipScores, fit_rates, with_rates
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
    "token_posterior": ("token_posterior",),
    "min_window_llr": ("min_window_llr",),
    "mean_llr": ("mean_llr",),
    "cer": ("cer",),
    "both ratios": ("min_window_llr", "mean_llr"),
    "ratios and end": ("min_window_llr", "mean_llr", "total_unaligned_s"),
    "ratios, cer": ("min_window_llr", "mean_llr", "cer"),
    "ratios, cer, unaligned": ("min_window_llr", "mean_llr", "cer", "total_unaligned_s"),
    "ratios, rate, unaligned": ("min_window_llr", "mean_llr", "rate_deviation", "total_unaligned_s"),
}
Scores = Sequence[ClipScores | None]


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
    aligner = open_aligner(options.model, settings=AlignerSettings(language=options.language))
    measurer = Measurer(aligner=aligner, identity=options.model, file=options.cache)
    started = time.monotonic()
    right, wrong = _measured(clips, measurer, options.seed)
    result = {
        "name": options.name,
        "command": " ".join(["separation.py", *(re.sub(r"/\S*/", "", word) for word in sys.argv[1:])]),
        "code": code_version(),
        "environment": environment(),
        "clips": len(clips),
        "seconds_of_audio": sum(clip.duration_s for clip in clips),
        "seconds": time.monotonic() - started,
        "unaligned": sum(one is None for one in right),
        "statistics": _statistics(right, wrong),
        "flags": {name: _flags(right, wrong, chosen) for name, chosen in SETS.items()},
        "worst": {name: _worst(right, wrong, chosen, options.seed) for name, chosen in SETS.items()},
    }
    options.results.mkdir(exist_ok=True)
    (options.results / f"separation_{options.name}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(_table(result))


def _measured(
    clips: Sequence[Clip], measurer: Measurer, seed: int
) -> tuple[list[ClipScores | None], dict[str, Scores]]:
    right = [row.scores for row in measurer.measure(clips, doing="aligning")]
    rates = fit_rates([one for one in right if one is not None])
    corruptor = Corruptor(clips, seed=seed)

    def rated(scores: Scores) -> list[ClipScores | None]:
        known = iter(with_rates([one for one in scores if one is not None], rates))
        return [None if one is None else next(known) for one in scores]

    wrong: dict[str, Scores] = {}
    for corruption in CORRUPTIONS:
        texts = [corruptor.corrupt(clip, corruption).text for clip in clips]
        changed = [
            replace(clip, id=f"{clip.id} {corruption.name}", text=text)
            for clip, text in zip(clips, texts, strict=True)
            if text is not None
        ]
        found = iter(row.scores for row in measurer.measure(changed, doing=corruption.name))
        # Of a transcript too short for it there is no corrupted form: nan, which no table counts.
        scores = [None if text is None else next(found) for text in texts]
        kept = [index for index, text in enumerate(texts) if text is not None]
        wrong[corruption.name] = rated([scores[index] for index in kept])
    return rated(right), wrong


def _statistics(right: Scores, wrong: Mapping[str, Scores]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name in STATISTICS:
        good = oriented(right, name)
        limit = np.quantile(good, 0.05)
        rows = {}
        for kind, scores in wrong.items():
            bad = oriented(scores, name)
            above = (good[:, None] > bad[None]).mean() + 0.5 * (good[:, None] == bad[None]).mean()
            rows[kind] = {"auc": float(above), "recall": float((bad < limit).mean()), "clips": len(bad)}
        together = np.concatenate([oriented(scores, name) for scores in wrong.values()])
        table[name] = {"kinds": rows, "recall": float((together < limit).mean())}
    return table


def _flags(right: Scores, wrong: Mapping[str, Scores], chosen: Sequence[str]) -> dict[str, Any]:
    """Calibrated on one half, tried on the other."""
    false, total = 0, 0
    found = dict.fromkeys(wrong, 0)
    tried = dict.fromkeys(wrong, 0)
    for half in (0, 1):
        made = calibrate(right[half::2], {}, statistics=chosen)
        others = right[1 - half :: 2]
        false += sum(bool(made.flags(one)) for one in others)
        total += len(others)
        for kind, scores in wrong.items():
            part = scores[1 - half :: 2]
            found[kind] += sum(bool(made.flags(one)) for one in part)
            tried[kind] += len(part)
    kinds = {kind: found[kind] / max(1, tried[kind]) for kind in wrong}
    return {"false_positive_rate": false / total, "kinds": kinds, "recall": float(np.mean(list(kinds.values())))}


def _worst(right: Scores, wrong: Mapping[str, Scores], chosen: Sequence[str], seed: int) -> dict[str, Any]:
    """Precision of the worst tenth where a tenth is corrupted, by the smallest p value, over 50 draws."""
    kinds = [kind for kind, scores in wrong.items() if len(scores) == len(right)]
    count = len(right)
    bad_count = max(1, count // 10)
    right_p = np.min([p_values(right, right, name) for name in chosen], axis=0)
    wrong_p = {kind: np.min([p_values(right, wrong[kind], name) for name in chosen], axis=0) for kind in kinds}
    tie = {kind: np.sum([oriented(wrong[kind], name).clip(-1e3, 1e3) for name in chosen], axis=0) for kind in kinds}
    right_tie = np.sum([oriented(right, name).clip(-1e3, 1e3) for name in chosen], axis=0)
    hits = 0
    for draw in range(50):
        rng = generator(seed, "worst", draw)
        order = rng.permutation(count)
        p, ties, is_bad = right_p.copy(), right_tie.copy(), np.zeros(count, dtype=bool)
        for place in order[:bad_count].tolist():
            kind = kinds[int(rng.integers(len(kinds)))]
            p[place], ties[place], is_bad[place] = wrong_p[kind][place], tie[kind][place], True
        hits += int(is_bad[np.lexsort((ties, p))[:bad_count]].sum())
    low, high = wilson(hits, 50 * bad_count)
    return {"precision": hits / (50 * bad_count), "low": low, "high": high, "worst": bad_count, "draws": 50}


def _table(result: Mapping[str, Any]) -> str:
    kinds = list(next(iter(result["statistics"].values()))["kinds"])
    lines = [
        f"{result['name']}: {result['clips']} clips of {result['seconds_of_audio']:.0f} s in {result['seconds']:.0f} s",
        "AUC / recall".ljust(28) + "".join(kind.rjust(18) for kind in kinds) + "all".rjust(8),
    ]
    for name, row in result["statistics"].items():
        cells = [f"{cell['auc']:.3f} / {cell['recall']:.2f}".rjust(18) for cell in row["kinds"].values()]
        lines.append(name.ljust(28) + "".join(cells) + f"{row['recall']:.2f}".rjust(8))
    lines.append("calibrated on the other half (false positives)")
    for name, row in result["flags"].items():
        cells = [f"{cell:.2f}".rjust(18) for cell in row["kinds"].values()]
        worst = result["worst"][name]["precision"]
        lines.append(
            f"{name} ({row['false_positive_rate']:.3f})".ljust(28)
            + "".join(cells)
            + f"{row['recall']:.2f}".rjust(8)
            + f"   worst tenth {worst:.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
