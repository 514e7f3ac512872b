"""What word confidences cost, and which number of a word's tokens tells right words from wrong ones.

    python benchmarks/confidence/run.py cost --model RUN --clips dev.jsonl
    python benchmarks/confidence/run.py tokens --dev dev-predictions.jsonl --test test-predictions.jsonl

`cost` recognises the same clips with and without confidences in turns and compares the processor time, which what else
runs on the machine changes little. `tokens` reads predictions that `sonotune evaluate evaluation.confidence=true --out`
wrote: a way of making one number of the log-probabilities of a word's tokens is chosen by the development clips (log
loss on clips that a calibration was not fitted on), and the test clips say what the choice was worth.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from sonotune.data.text import get
from sonotune.data.words import right_words
from sonotune.metrics.confidence import Calibration, RatedWords, confidence_scores, fit_platt

Tokens = Sequence[float]

_LEAST, _MOST = -50.0, -1e-6
WAYS: Final[Mapping[str, Callable[[Tokens], float]]] = {
    "product": math.fsum,
    "geometric mean": lambda tokens: math.fsum(tokens) / len(tokens),
    "least": min,
    "arithmetic mean": lambda tokens: math.log(math.fsum(map(math.exp, tokens)) / len(tokens) + 1e-30),
    "first": lambda tokens: tokens[0],
}
FOLDS: Final = 5


def main() -> None:
    """Run one of the two parts and print its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    cost = parts.add_parser("cost")
    cost.add_argument("--model", required=True)
    cost.add_argument("--clips", required=True)
    cost.add_argument("--rounds", type=int, default=5)
    cost.add_argument("--first", type=int, default=8, help="clips of the manifest that are recognised")
    tokens = parts.add_parser("tokens")
    tokens.add_argument("--dev", type=Path, required=True)
    tokens.add_argument("--test", type=Path, required=True)
    tokens.add_argument("--text", default="basic", help="normaliser of the scores")
    given = parser.parse_args()
    found = (
        measure_cost(given.model, given.clips, rounds=given.rounds, first=given.first)
        if given.part == "cost"
        else compare_ways(given.dev, given.test, given.text)
    )
    print(json.dumps(found, indent=1))


def measure_cost(model: str, manifest: str, *, rounds: int, first: int) -> dict[str, Any]:
    """Processor time of recognising with confidences over that without, of rounds in turns."""
    from sonotune.api import load
    from sonotune.arguments import corpus_to_score, settings_of_use

    line = [f"model.checkpoint={model}", f"data.test={manifest}", "data.allow_outside_root=true", "training.threads=1"]
    recognizer = load(model, ["training.threads=1"])
    config = settings_of_use(line).config
    clips = [replace(clip, text=None) for clip in corpus_to_score(config, recognizer).splits["test"][:first]]
    decoding = replace(config.evaluation.decoding(), temperatures=(0.0,))
    seconds: dict[bool, list[float]] = {False: [], True: []}
    words = 0
    warm = recognizer.evaluate(clips, decoding=decoding)
    for number in range(rounds):
        for confidence in (False, True) if number % 2 else (True, False):
            began = time.process_time()
            result = recognizer.evaluate(clips, decoding=replace(decoding, confidence=confidence))
            seconds[confidence].append(time.process_time() - began)
            words = max(words, sum(len(one.words or ()) for one in result.predictions))
    ratios = [with_them / without for without, with_them in zip(seconds[False], seconds[True], strict=True)]
    return {
        "clips": len(clips),
        "audio_seconds": warm.audio_seconds,
        "words": words,
        "seconds_without": seconds[False],
        "seconds_with": seconds[True],
        "ratio_median": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
    }


def compare_ways(dev: Path, test: Path, text: str) -> dict[str, Any]:
    """Each way on both sets, the one that the development clips choose first."""
    clips = {name: _words(path, get(text).scoring) for name, path in (("dev", dev), ("test", test))}
    rows: list[dict[str, Any]] = []
    for name, way in WAYS.items():
        rated = {where: _rated(words, way) for where, words in clips.items()}
        fitted = fit_platt(rated["dev"])
        if fitted is None:
            continue
        calibration = Calibration(slope=fitted[0], intercept=fitted[1], words=0, clips=0, settings={})
        before = confidence_scores(rated["dev"], None, resamples=2)
        after = confidence_scores(rated["test"], calibration, resamples=1000)
        rows.append(
            {
                "way": name,
                "dev_log_loss": _held_out_log_loss(rated["dev"]),
                "dev_auroc": before["auroc"].value,
                "slope": fitted[0],
                "intercept": fitted[1],
                "test": {key: score.to_json() for key, score in after.items()},
            }
        )
    rows.sort(key=lambda row: float(row["dev_log_loss"]))
    return {"chosen": rows[0]["way"], "ways": rows, "words": {name: len(words) for name, words in clips.items()}}


def _words(path: Path, scoring: Callable[[str], str]) -> list[tuple[int, Tokens, bool]]:
    """Clip, tokens and whether it is right, of every word that has a part in scores."""
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines()):
        row = json.loads(line)
        right = right_words(row["hypothesis"], row["reference"], scoring)
        found += [
            (number, word["logprobs"], outcome)
            for word, outcome in zip(row["words"], right, strict=True)
            if outcome is not None
        ]
    return found


def _rated(words: Sequence[tuple[int, Tokens, bool]], way: Callable[[Tokens], float]) -> RatedWords:
    logprobs = np.clip([way(tokens) for _, tokens, _ in words], _LEAST, _MOST)
    clip = np.array([number for number, _, _ in words])
    right = np.array([outcome for _, _, outcome in words])
    return RatedWords(logprobs - np.log(-np.expm1(logprobs)), right, clip, int(clip.max()) + 1)


def _held_out_log_loss(rated: RatedWords) -> float:
    """Mean negative log-probability of what is right, over clips that the calibration did not see."""
    total = 0.0
    for fold in range(FOLDS):
        out = rated.clip % FOLDS == fold
        slope, intercept = fit_platt(
            RatedWords(rated.log_odds[~out], rated.right[~out], rated.clip[~out], rated.clips)
        ) or (0.0, 0.0)
        odds = (slope * rated.log_odds + intercept)[out]
        total += float(np.logaddexp(0.0, np.where(rated.right[out], -odds, odds)).sum())
    return total / len(rated.right)


if __name__ == "__main__":
    main()
