"""WER of an untuned or tuned Whisper over margin and spacing of the thinned window, beside the whole and the cut one.

    python benchmarks/real_models/spacing.py real-data --model ../shared/data/whisper_base --clips 40 --out FILE
    python benchmarks/real_models/spacing.py --plot FILE PICTURE

Greedy decoding without fallback, so that loops show. Scores are of the basic form with digits read out in words, for
an untuned Whisper writes "3" where the reference of a digit string says "three".
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import jiwer

from sonotune.data.text import get
from sonotune.metrics.runaway import loops
from sonotune.types import DecodingSettings

DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GRID: Final = ((0, 30), (25, 30), (50, 15), (50, 30), (50, 60), (100, 60))
"""Margins in positions of 20 ms, and spacings."""
LANGUAGES: Final = {"fsdd": "en", "breton": "br", "swahili": "sw"}


def main() -> None:
    """Measure, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--model", default="")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--longest", type=float, default=16.0, help="Seconds of the longest clip taken.")
    parser.add_argument("--corpora", nargs="+", default=sorted(LANGUAGES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", nargs=2, metavar=("FILE", "PICTURE"))
    options = parser.parse_args()
    if options.plot:
        draw(json.loads(Path(options.plot[0]).read_text("utf-8")), Path(options.plot[1]))
        return
    rows = []
    for corpus in options.corpora:
        for row in measure(options.data / corpus, options.model, LANGUAGES[corpus], options.clips, options.longest):
            rows.append({"corpus": corpus, **row})
            print(json.dumps(rows[-1]), flush=True)
            if options.out:
                options.out.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


def measure(corpus: Path, model: str, language: str, number: int, longest: float) -> list[dict[str, Any]]:
    """A row for each way to compute the window."""
    from sonotune.data.manifest import read_manifest
    from sonotune.evaluation.evaluate import predict_clips
    from sonotune.models.thinning import Thinning
    from sonotune.serving.recognizer import Recognizer

    recognizer = Recognizer.open(model, language=language)
    clips = [
        clip for clip in read_manifest(corpus / "test.jsonl", allow_outside_root=True) if clip.duration_s < longest
    ]
    clips = clips[:number]
    references = [spoken(clip.text or "") for clip in clips]
    found, whole = [], [""] * len(clips)
    ways: list[tuple[str, int, int]] = [("full", 0, 1), ("cut", 0, 1), *(("thinned", *pair) for pair in GRID)]
    for context, margin, spacing in ways:
        loaded = recognizer.opened.loaded.with_(thinning=Thinning(margin=margin, spacing=spacing))
        began = time.perf_counter()
        predictions, _ = predict_clips(recognizer.task, loaded, clips, context=context, decoding=GREEDY)  # type: ignore[arg-type]
        texts = [spoken(prediction.text or "") or "-" for prediction in predictions]
        whole = texts if context == "full" else whole
        sums = [min(1500, round(50 * clip.duration_s) + margin) for clip in clips]
        kept = [n + (1500 - n) // spacing if context == "thinned" else n for n in sums]
        found.append(
            {
                "context": context, "margin": margin, "spacing": spacing, "clips": len(clips),
                "wer": jiwer.wer(references, texts), "cer": jiwer.cer(references, texts),
                "loops": sum(loops(text, reference) for text, reference in zip(texts, references, strict=True)),
                "against_full": jiwer.wer(whole, texts),
                "positions": 1500 if context == "full" else sum(kept) / len(kept),
                "seconds": time.perf_counter() - began,
            }
        )  # fmt: skip
    return found


GREEDY: Final = DecodingSettings(temperatures=(0.0,))


def spoken(text: str) -> str:
    """The basic scoring form with digits in words."""
    form = get("basic").scoring(text)
    return " ".join("".join(f" {DIGITS[int(c)]} " if c.isascii() and c.isdigit() else c for c in form).split())


def draw(rows: Sequence[dict[str, Any]], picture: Path) -> None:
    """A panel for each corpus: WER over kept positions."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    corpora = sorted({row["corpus"] for row in rows})
    figure, panels = plt.subplots(1, len(corpora), figsize=(4.2 * len(corpora), 3.6), squeeze=False)
    colors = {"full": "#222222", "cut": "#c0392b", "thinned": "#1f77b4"}
    for panel, corpus in zip(panels[0], corpora, strict=True):
        own = [row for row in rows if row["corpus"] == corpus]
        for row in own:
            y = min(100 * row["wer"], 400)
            panel.scatter(row["positions"], y, color=colors[row["context"]], s=28, zorder=3)
            label = f"{row['margin'] / 50:g} s, {row['spacing']}" if row["context"] == "thinned" else row["context"]
            panel.annotate(label, (row["positions"], y), xytext=(4, 3), textcoords="offset points", fontsize=6)
        panel.set_title(corpus)
        panel.set_xlabel("positions computed a clip")
        panel.set_ylabel("WER, % (400 at most)")
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main()
