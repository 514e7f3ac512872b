"""How good is an aligner where nobody knows the times? What another model reads in the crops that it makes.

    python benchmarks/alignment/crops.py NAME MANIFEST --aligner CHECKPOINT --reader CHECKPOINT --words 2

Each clip is cut into crops of a few words, from the start of the first to the end of the last, and another model
transcribes every crop. Words that the borders cut off or take from a neighbour are errors. Beside the aligner stand
degraded ones, whose order is known: its borders moved by 0.1, 0.2 and 0.4 s, or by noise of these deviations; and words
spaced evenly over the clip, which needs no aligner.

Where clips were joined of recordings of one word each (`data.chunking.join`), their times are known: with
`--recordings FOLDER`, errors against them are printed, and nothing is read.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sonotune.alignment.base import AlignerSettings, Alignment
from sonotune.alignment.open import open_aligner
from sonotune.audio.io import probe
from sonotune.data.manifest import read_manifest
from sonotune.data.text import get
from sonotune.metrics.error_rate import EditCounts, char_edits, sum_counts, word_edits
from sonotune.metrics.paired import choose_blocks, paired_difference
from sonotune.runs import code_version, environment, generator
from sonotune.serving.recognizer import Recognizer
from sonotune.types import Clip, DecodingSettings

GAP_S: Final = 0.15  # between joined recordings
STEPS_S: Final = (0.1, 0.2, 0.4)
SHORTEST_S: Final = 0.1  # nothing is read in a shorter crop
GREEDY: Final = DecodingSettings(temperatures=(0.0,))
Spans = NDArray[np.float64]
"""Start and end of each word of a clip (W, 2), in seconds."""
Degrade = Callable[[Clip, Spans], Spans]


def main() -> None:
    """Align, cut, read, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--aligner", required=True)
    parser.add_argument("--reader", default="")
    parser.add_argument("--recordings", type=Path)
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--words", type=int, default=2, help="of a crop")
    parser.add_argument("--language", default="en")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    clips = read_manifest(options.manifest, allow_outside_root=True)
    clips = [clip for clip in clips if len((clip.text or "").split()) > options.words]
    drawn = generator(0, "crops").permutation(len(clips))[: options.clips]
    clips = [clips[index] for index in sorted(drawn.tolist())]
    aligner = open_aligner(options.aligner, settings=AlignerSettings(language=options.language, transcribe=False))
    aligned = [
        (clip, np.array([(word.start_s, word.end_s) for word in found.words]))
        for clip, found in zip(clips, aligner.align(clips), strict=True)
        if isinstance(found, Alignment)
    ]
    if options.recordings is not None:
        print(json.dumps(times(aligned, options.recordings)))
        return
    reader = Recognizer.open(options.reader, language=options.language)
    errors: dict[str, list[tuple[EditCounts, EditCounts]]] = {}
    for name, degrade in arms().items():
        errors[name] = read(aligned, degrade, reader, options.words)
        print(name, _rate([chars for chars, _ in errors[name]]), flush=True)
    result = {
        "name": options.name,
        "command": " ".join(["crops.py", *(re.sub(r"/\S*/", "", word) for word in sys.argv[1:])]),
        "code": code_version(),
        "environment": environment(),
        "clips": len(aligned),
        "unaligned": len(clips) - len(aligned),
        "crops": sum(len(crops_of(clip, spans, options.words)) for clip, spans in aligned),
        "rows": [_row(name, errors) for name in errors],
        "orders": [_order(names, errors) for names in ORDERS],
    }
    options.results.mkdir(exist_ok=True)
    (options.results / f"crops_{options.name}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result["rows"], indent=1), json.dumps(result["orders"], indent=1))


# --- aligners ------------------------------------------------------------------------------------


def arms() -> dict[str, Degrade]:
    """The aligner as it is, and the degraded ones."""
    made: dict[str, Degrade] = {"aligned": lambda _, spans: spans}
    for step_s in STEPS_S:
        made[f"moved {step_s:g} s"] = partial(_moved, by_s=step_s)
    for step_s in STEPS_S:
        made[f"noise {step_s:g} s"] = partial(_noisy, deviation_s=step_s)
    return made | {"even": _even}


ORDERS: Final = (
    ("aligned", *(f"moved {step_s:g} s" for step_s in STEPS_S)),
    ("aligned", *(f"noise {step_s:g} s" for step_s in STEPS_S)),
    ("aligned", "even"),
)
"""From the best to the worst, as they were made."""


def _moved(_: Clip, spans_W2: Spans, *, by_s: float) -> Spans:
    return spans_W2 + by_s


def _noisy(clip: Clip, spans_W2: Spans, *, deviation_s: float) -> Spans:
    """The same draw for every deviation."""
    return spans_W2 + deviation_s * generator(0, "crops", clip.id).standard_normal(spans_W2.shape)


def _even(clip: Clip, spans_W2: Spans) -> Spans:
    borders = np.linspace(0.0, clip.duration_s, len(spans_W2) + 1)
    return np.stack([borders[:-1], borders[1:]], axis=1)


def times(aligned: Sequence[tuple[Clip, Spans]], recordings: Path) -> dict[str, dict[str, float]]:
    """Errors of word starts and ends against the recordings that clips were joined of."""
    errors = []
    for clip, spans_W2 in aligned:
        lengths = [probe(recordings / f"{name}.wav").duration_s for name in str(clip.extra["sources"]).split()]
        starts = np.cumsum([0.0, *(length + GAP_S for length in lengths[:-1])])
        errors.append(spans_W2 - np.stack([starts, starts + lengths], axis=1))
    found = np.concatenate(errors)
    return {
        name: {
            "words": len(found),
            "bias_s": float(np.median(found[:, place])),
            "median_s": float(np.median(np.abs(found[:, place]))),
            "p90_s": float(np.quantile(np.abs(found[:, place]), 0.9)),
        }
        for place, name in enumerate(("starts", "ends"))
    }


# --- crops ---------------------------------------------------------------------------------------


def crops_of(clip: Clip, spans_W2: Spans, words: int) -> list[Clip]:
    """Clips of some words each; a rest that is shorter joins the one before it."""
    said = (clip.text or "").split()
    firsts = list(range(0, max(1, len(said) - words + 1), words))
    made = []
    for number, (first, behind) in enumerate(pairwise([*firsts, len(said)])):
        start_s, end_s = np.clip([spans_W2[first, 0], spans_W2[behind - 1, 1]], 0.0, clip.duration_s)
        made.append(
            replace(
                clip,
                id=f"{clip.id} {number}",
                start_s=clip.start_s + float(start_s),
                duration_s=max(0.0, float(end_s - start_s)),
                text=" ".join(said[first:behind]),
                words=(),
            )
        )
    return made


def read(
    aligned: Sequence[tuple[Clip, Spans]], degrade: Degrade, reader: Recognizer, words: int
) -> list[tuple[EditCounts, EditCounts]]:
    """Errors in characters and in words of each clip, over its crops."""
    crops = [crops_of(clip, degrade(clip, spans), words) for clip, spans in aligned]
    readable = [crop for of_clip in crops for crop in of_clip if crop.duration_s >= SHORTEST_S]
    texts = {one.clip_id: one.text or "" for one in reader.evaluate(readable, decoding=GREEDY).predictions}
    scoring = get("basic").scoring
    found = []
    for of_clip in crops:
        pairs = [(scoring(crop.text or ""), scoring(texts.get(crop.id, ""))) for crop in of_clip]
        found.append((sum_counts(char_edits(*pair) for pair in pairs), sum_counts(word_edits(*pair) for pair in pairs)))
    return found


# --- tables --------------------------------------------------------------------------------------

Errors = Mapping[str, Sequence[tuple[EditCounts, EditCounts]]]


def _row(name: str, errors: Errors) -> dict[str, Any]:
    """Rates, and the difference from the aligner as it is."""
    row: dict[str, Any] = {"arm": name}
    for place, unit in enumerate(("cer", "wer")):
        row[unit] = _rate([one[place] for one in errors[name]])
        if name != "aligned":
            row[f"{unit}_difference"] = _difference("aligned", name, errors, place)
    return row


def _order(names: Sequence[str], errors: Errors) -> dict[str, Any]:
    """Whether the rates rise as they should, with every step."""
    steps = {f"{first} -> {second}": _difference(first, second, errors, 0) for first, second in pairwise(names)}
    return {
        "order": list(names),
        "right": all(step["value"] > 0 for step in steps.values()),
        "shown": all(step["low"] > 0 for step in steps.values()),
        "steps": steps,
    }


def _difference(first: str, second: str, errors: Errors, place: int) -> dict[str, float]:
    counts = [[one[place] for one in errors[name]] for name in (first, second)]
    found = paired_difference(
        "error rate",
        [[one.errors for one in counts[0]]],
        [[one.errors for one in counts[1]]],
        [one.reference for one in counts[0]],
        blocks=choose_blocks([None] * len(counts[0])),
    )
    return {"value": found.value, "low": found.low, "high": found.high}


def _rate(counts: Sequence[EditCounts]) -> float:
    return sum(one.errors for one in counts) / sum(one.reference for one in counts)


if __name__ == "__main__":
    main()
