"""WER of an untuned or tuned Whisper over margin and spacing of the thinned window, beside the whole and the cut one.

    python benchmarks/real_models/spacing.py real-data --model ../shared/data/whisper_base --clips 40 --out FILE
    python benchmarks/real_models/spacing.py real-data --model MODEL --pauses --out FILE
    python benchmarks/real_models/spacing.py --plot FILE PICTURE

`--pauses` thins the pauses inside a clip as well: positions quieter than the clip's loudest by so many decibels, so far
from anything louder, of which one of so many is kept with the logarithm of that on its logit.

Greedy decoding without fallback, so that loops show. Scores are of the basic form with digits read out in words, for
an untuned Whisper writes "3" where the reference of a digit string says "three".
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jiwer
import torch
from torch import Tensor

from sonotune.data.text import get
from sonotune.metrics.runaway import loops
from sonotune.models.thinning import Thinning
from sonotune.types import Clip, DecodingSettings

DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GRID: Final = ((0, 30), (25, 30), (50, 15), (50, 30), (50, 60), (100, 60))
"""Margins in positions of 20 ms, and spacings."""
PAUSES: Final = ((35.0, 10, 10), (35.0, 25, 10), (35.0, 25, 30), (25.0, 10, 10))
"""Decibels below the loudest position, positions of 20 ms around what is louder that stay, spacing inside a pause."""
LANGUAGES: Final = {"fsdd": "en", "breton": "br", "swahili": "sw"}


def main() -> None:
    """Measure, or draw what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--model", default="")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--longest", type=float, default=16.0, help="Seconds of the longest clip taken.")
    parser.add_argument("--corpora", nargs="+", default=sorted(LANGUAGES))
    parser.add_argument("--pauses", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", nargs=2, metavar=("FILE", "PICTURE"))
    options = parser.parse_args()
    if options.plot:
        draw(json.loads(Path(options.plot[0]).read_text("utf-8")), Path(options.plot[1]))
        return
    rows = []
    for corpus in options.corpora:
        how = measure_pauses if options.pauses else measure
        for row in how(options.data / corpus, options.model, LANGUAGES[corpus], options.clips, options.longest):
            rows.append({"corpus": corpus, **row})
            print(json.dumps(rows[-1]), flush=True)
            if options.out:
                options.out.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


def measure(corpus: Path, model: str, language: str, number: int, longest: float) -> list[dict[str, Any]]:
    """A row for each way to compute the window."""
    recognizer, clips = opened(corpus, model, language, number, longest)
    references = [spoken(clip.text or "") for clip in clips]
    found, whole = [], [""] * len(clips)
    ways: list[tuple[str, int, int]] = [("full", 0, 1), ("cut", 0, 1), *(("thinned", *pair) for pair in GRID)]
    for context, margin, spacing in ways:
        loaded = recognizer.opened.loaded.with_(thinning=Thinning(margin=margin, spacing=spacing))
        began = time.perf_counter()
        texts = written(recognizer, loaded, clips, context=context)
        whole = texts if context == "full" else whole
        sums = [min(1500, round(50 * clip.duration_s) + margin) for clip in clips]
        kept = [n + (1500 - n) // spacing if context == "thinned" else n for n in sums]
        found.append(
            {
                "context": context,
                "margin": margin,
                "spacing": spacing,
                "clips": len(clips),
                "wer": jiwer.wer(references, texts),
                "cer": jiwer.cer(references, texts),
                "loops": sum(loops(text, reference) for text, reference in zip(texts, references, strict=True)),
                "against_full": jiwer.wer(whole, texts),
                "positions": 1500 if context == "full" else sum(kept) / len(kept),
                "seconds": time.perf_counter() - began,
            }
        )
    return found


def measure_pauses(corpus: Path, model: str, language: str, number: int, longest: float) -> list[dict[str, Any]]:
    """A row without and one for each way to thin pauses inside the clips; clips go one by one."""
    from sonotune.models import speech_encoders

    recognizer, clips = opened(corpus, model, language, number, longest)
    references = [spoken(clip.text or "") for clip in clips]
    plain_encode, plain_texts, found = speech_encoders.encode, [""] * len(clips), []
    for pause in (None, *PAUSES):
        kept: list[int] = []

        def encode(encoder: Any, inputs_BTF: Tensor, *rest: Any, pause: Any = pause, **given: Any) -> Any:
            quiet_P = torch.zeros(0, dtype=torch.bool) if pause is None else quiet(inputs_BTF, *pause[:2])
            given["thinning"] = ThinnedPauses(quiet=quiet_P, every=pause[2] if pause else 1)
            encoded = plain_encode(encoder, inputs_BTF, *rest, **given)
            kept.append(encoded.states.shape[1])  # noqa: B023
            return encoded

        speech_encoders.encode = encode
        began = time.perf_counter()
        texts = written(recognizer, recognizer.opened.loaded, clips, context="thinned", max_clips=1)
        speech_encoders.encode = plain_encode
        plain_texts = plain_texts if pause else texts
        found.append(
            {
                "pause": pause,
                "clips": len(clips),
                "wer": jiwer.wer(references, texts),
                "cer": jiwer.cer(references, texts),
                "loops": sum(loops(text, reference) for text, reference in zip(texts, references, strict=True)),
                "same_text": sum(a == b for a, b in zip(texts, plain_texts, strict=True)) / len(texts),
                "positions": sum(kept) / len(kept),
                "seconds": time.perf_counter() - began,
            }
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinnedPauses(Thinning):
    """Positions of one clip that are quiet (P,), of which one of `every` is kept."""

    quiet: Tensor
    every: int

    def keep(self, positions_B: Tensor, window: int) -> tuple[Tensor, Tensor]:
        """See `Thinning.keep`; for a batch of one clip."""
        places_P, weights_BP = Thinning.keep(self, positions_B, window)
        quiet_P = torch.zeros(window, dtype=torch.bool)
        quiet_P[: len(self.quiet)] = self.quiet[:window]
        quiet_P = quiet_P[places_P] & (places_P < int(positions_B[0]))
        left_P = ~quiet_P | (places_P % self.every == self.every // 2)
        weights_BP = torch.where(quiet_P, math.log(self.every), weights_BP)
        return places_P[left_P], weights_BP[:, left_P]


def quiet(inputs_BTF: Tensor, decibels: float, edge: int) -> Tensor:
    """Positions (P,) of one clip's log-mel frames that are quiet, as are `edge` positions on both sides."""
    power_T = (4 * inputs_BTF[0].float() - 4).mul(math.log(10)).logsumexp(dim=-1) * (10 / math.log(10))
    power_P = torch.nn.functional.max_pool1d(power_T[None], 2, ceil_mode=True)
    loud_P = (power_P > power_P.max() - decibels).float()
    return torch.nn.functional.max_pool1d(loud_P, 2 * edge + 1, stride=1, padding=edge)[0] == 0


def opened(corpus: Path, model: str, language: str, number: int, longest: float) -> tuple[Any, list[Clip]]:
    """The model and the first clips of the test that are short enough."""
    from sonotune.data.manifest import read_manifest
    from sonotune.serving.recognizer import Recognizer

    clips = read_manifest(corpus / "test.jsonl", allow_outside_root=True)
    return Recognizer.open(model, language=language), [clip for clip in clips if clip.duration_s < longest][:number]


def written(recognizer: Any, loaded: Any, clips: Sequence[Clip], **settings: Any) -> list[str]:
    """Texts of clips, as they are scored."""
    from sonotune.evaluation.evaluate import predict_clips

    predictions, _ = predict_clips(
        recognizer.task, loaded, clips, decoding=GREEDY, autocast=recognizer._autocast, **settings
    )
    return [spoken(prediction.text or "") or "-" for prediction in predictions]


GREEDY: Final = DecodingSettings(temperatures=(0.0,))


def spoken(text: str) -> str:
    """The basic scoring form with digits in words."""
    form = get("basic").scoring(text)
    return " ".join("".join(f" {DIGITS[int(c)]} " if c.isascii() and c.isdigit() else c for c in form).split())


TITLES: Final = {"breton": "Breton, spontaneous", "fsdd": "digit strings", "swahili": "Swahili news"}


def draw(rows: Sequence[dict[str, Any]], picture: Path) -> None:
    """A panel for each corpus: WER of every way to compute the window, with the positions and the loops it had."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    def name(row: dict[str, Any]) -> str:
        thinned = row["context"] == "thinned"
        return f"thinned, {row['margin'] / 50:g} s, every {row['spacing']}th" if thinned else row["context"]

    corpora = sorted({row["corpus"] for row in rows})
    names = list(dict.fromkeys(name(row) for row in rows))
    figure, panels = plt.subplots(1, len(corpora), figsize=(3.5 * len(corpora) + 1.3, 3.3), sharey=True, squeeze=False)
    colors = {"full": "#222222", "cut": "#c0392b", "thinned": "#1f77b4"}
    for panel, corpus in zip(panels[0], corpora, strict=True):
        own = [row for row in rows if row["corpus"] == corpus]
        most = 2.2 * sorted(row["wer"] for row in own)[-2]
        for row in own:
            y, x = names.index(name(row)), 100 * min(row["wer"], most)
            panel.plot([0, x], [y, y], color=colors[row["context"]], linewidth=2, alpha=0.35)
            panel.plot([x], [y], color=colors[row["context"]], marker="o" if row["wer"] <= most else ">", markersize=6)
            beyond = "" if row["wer"] <= most else f"{100 * row['wer']:.0f} %, "
            loops_of = f", {row['loops']} loop{'s' * (row['loops'] != 1)}" if row["loops"] else ""
            text = f"{beyond}{row['positions']:.0f} positions{loops_of}"
            panel.annotate(text, (x, y), xytext=(7, 0), textcoords="offset points", va="center", fontsize=7)
        panel.set_title(f"{TITLES.get(corpus, corpus)}, {own[0]['clips']} clips", fontsize=10)
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.set_xlim(0, 100 * most * 1.75)
        panel.set_xlabel("WER, %", fontsize=9)
        panel.grid(alpha=0.3, axis="x")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    main()
