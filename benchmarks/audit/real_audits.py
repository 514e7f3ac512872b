"""How often does a whole audit decide wrongly, with scores of a real aligner on real recordings?

    python benchmarks/audit/real_audits.py CORPUS TRUSTED --model RUN_OF_CTC_NANO

Every clip of the corpus is aligned with its right transcript and with each corruption of it. An audit is then one of
the package (`sonotune.audit.run.audit`) on the corpus with a known share of its transcripts replaced by corrupted
ones: its own draw of the clips and of their corruptions, its own sample, its own 200 trusted clips of those given.
Corrupted trusted clips are aligned for each of `CALIBRATIONS` seeds, which the audits take in turn.

A decision is wrong where it is PROCEED at a true share of `proceed_below` or more, or STOP at one of `stop_above` or
less. Then 1,000 clips are audited as a whole, a tenth of them bad: how many of the 100 worst lines of `clips.jsonl`
are? Further sets of audits leave the speakers' names in place, by which the gate counts clips as clusters; have all bad
clips in one of the two speakers, whose names are not given; have one corruption alone, that which is found least.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from sonotune.audit.corruption import DEFAULT_CORRUPTIONS, Corruptor
from sonotune.audit.gate import GateSettings
from sonotune.audit.opening import OpenedMeasurer, open_measurer
from sonotune.audit.record import CLIPS_FILE
from sonotune.audit.run import Audit, AuditSettings, audit
from sonotune.audit.sampling import SamplingSettings
from sonotune.audit.sources import Transcribed
from sonotune.data.manifest import digest, read_manifest
from sonotune.metrics.intervals import wilson
from sonotune.runs import code_version, environment, generator
from sonotune.types import Clip

SHARES: Final = (0.05, 0.08, 0.10, 0.12, 0.15, 0.20)
CALIBRATIONS: Final = 10
WORST: Final = 100
HARDEST: Final = "substituted 10 %"
PARTS: Final = ("audits", "worst", "speakers", "one_speaker", "hardest")

Texts = Sequence[Mapping[str, str]]
"""Of each clip: corruption -> transcript."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all audits share.

    Attributes:
        clips: Of the corpus, with right transcripts.
        texts: Their corrupted transcripts.
        trusted: Clips with right transcripts.
        opened: The aligner, with all that was measured.
        folder: Where the audits write.
    """

    clips: Sequence[Clip]
    texts: Texts
    trusted: Transcribed
    opened: OpenedMeasurer
    folder: Path

    def audit(self, clips: Sequence[Clip], name: str, number: int, **sampling: Any) -> Audit:
        """One audit of the package."""
        seed = int(generator(number, "real audits", name).integers(2**31))
        return audit(
            Transcribed(clips=tuple(clips), without=0, digest=digest(clips)),
            trusted=self.trusted,
            measurer=self.opened.measurer,
            model=self.opened.model,
            settings=AuditSettings(
                sampling=SamplingSettings(seed=seed, **sampling), gate=GateSettings(), seed=number % CALIBRATIONS
            ),
            folder=self.folder,
            recorded={},
        )

    def corrupted(
        self, share: float, name: str, number: int, kinds: Sequence[str], only: Collection[str] = ()
    ) -> tuple[list[Clip], set[str]]:
        """The corpus with a share of its transcripts corrupted, all of them `only` of some clips; the ids of these."""
        rng = generator(number, "real audits", name, "bad")
        made, bad = list(self.clips), set[str]()
        for place in rng.permutation(len(made)).tolist():
            possible = [self.texts[place][kind] for kind in kinds if kind in self.texts[place]]
            if only and made[place].id not in only:
                continue
            if len(bad) < round(share * len(made)) and possible:
                made[place] = replace(made[place], text=possible[int(rng.integers(len(possible)))])
                bad.add(made[place].id)
        return made, bad


def main() -> None:
    """Measure, audit, and write a file for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("trusted", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--audits", type=int, default=34, help="of each true share")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    clips, trusted = (read_manifest(path, allow_outside_root=True) for path in (options.corpus, options.trusted))
    opened = open_measurer(options.model, clips, file=options.cache)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            clips=clips,
            texts=measured(clips, opened),
            trusted=Transcribed(clips=tuple(trusted), without=0, digest=digest(trusted)),
            opened=opened,
            folder=Path(folder),
        )
        kinds = [one.name for one in DEFAULT_CORRUPTIONS]
        first = frozenset(clip.id for clip in clips if clip.speaker == clips[0].speaker)
        unnamed = replace(bench, clips=[replace(clip, speaker=None) for clip in clips])
        parts = {
            "audits": lambda: decisions(unnamed, "even", kinds, options.audits),
            "worst": lambda: worst(unnamed, kinds),
            "speakers": lambda: decisions(bench, "speakers", kinds, options.audits // 2),
            "one_speaker": lambda: decisions(unnamed, "one speaker", kinds, options.audits // 2, only=first),
            "hardest": lambda: decisions(unnamed, HARDEST, [HARDEST], options.audits // 2),
        }
        for part in options.parts:
            started = time.monotonic()
            result = {
                "command": " ".join(["real_audits.py", *(re.sub(r"/\S*/", "", word) for word in sys.argv[1:])]),
                "code": code_version(),
                "environment": environment(),
                "clips": len(clips),
                "trusted": len(trusted),
                **parts[part](),
                "seconds": round(time.monotonic() - started, 1),
            }
            options.results.mkdir(exist_ok=True)
            file = options.results / f"real_audits_{part}.json"
            file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def measured(clips: Sequence[Clip], opened: OpenedMeasurer) -> list[dict[str, str]]:
    """Align every clip with its right transcript and with each corrupted one; the latter."""
    corruptor = Corruptor(clips)
    made: list[dict[str, str]] = []
    forms: list[Clip] = []
    for clip in clips:
        texts = {one.name: corruptor.corrupt(clip, one).text for one in DEFAULT_CORRUPTIONS}
        made.append({name: text for name, text in texts.items() if text is not None})
        forms += [clip, *(replace(clip, id=f"{clip.id} {name}", text=text) for name, text in made[-1].items())]
    opened.measurer.measure(forms, doing="aligning, right and corrupted")
    return made


def decisions(bench: Bench, name: str, kinds: Sequence[str], audits: int, only: Collection[str] = ()) -> dict[str, Any]:
    """What audits decide at each true share."""
    rows = []
    for share in SHARES:
        made = []
        for number in range(audits):
            clips, bad = bench.corrupted(share, f"{name} {share}", number, kinds, only)
            made.append((bench.audit(clips, f"{name} {share}", number), bad, len(bad) / len(clips)))
        rows.append({"share": share, **_row(made)})
        print(name, rows[-1], flush=True)
    total, wrong, inside = (sum(int(row[key]) for row in rows) for key in ("audits", "wrong", "inside"))
    return {"rows": rows, "wrong": _proportion(wrong, total), "inside": _proportion(inside, total)}


def _row(made: Sequence[tuple[Audit, set[str], float]]) -> dict[str, Any]:
    """The audits of one share: decisions, and what the sample really held beside what calibration said of it."""
    reports = [one.report for one, _, _ in made]
    said = Counter(report.decision for report in reports)
    looked_at = [(one.clip.id in bad, bool(one.flags)) for found, bad, _ in made for one in found.clips]
    known = [report.calibration.detector for report in reports]
    return {
        "audits": len(made),
        **{one: said[one] for one in ("PROCEED", "CAUTION", "STOP")},
        "wrong": sum(_is_wrong(found.report.decision, share) for found, _, share in made),
        "inside": sum(found.report.rate.low <= share <= found.report.rate.high for found, _, share in made),
        "clips": float(np.mean([report.rate.count for report in reports])),
        "mean_rate": float(np.mean([report.rate.value for report in reports])),
        "sensitivity": float(np.mean([one.sensitivity for one in known if one is not None])),
        "specificity": float(np.mean([one.specificity for one in known if one is not None])),
        "true_sensitivity": float(np.mean([flagged for is_bad, flagged in looked_at if is_bad])),
        "true_specificity": float(np.mean([not flagged for is_bad, flagged in looked_at if not is_bad])),
    }


def _is_wrong(decision: str, share: float) -> bool:
    gate = GateSettings()
    return (decision == "PROCEED" and share >= gate.proceed_below) or (decision == "STOP" and share <= gate.stop_above)


def worst(bench: Bench, kinds: Sequence[str]) -> dict[str, Any]:
    """Of the worst lines of `clips.jsonl`, how many are bad, in corpora of which a tenth is."""
    precisions = []
    for number in range(CALIBRATIONS):
        drawn = generator(number, "real audits", "worst").permutation(len(bench.clips))[: 10 * WORST].tolist()
        part = replace(bench, clips=[bench.clips[one] for one in drawn], texts=[bench.texts[one] for one in drawn])
        clips, bad = part.corrupted(0.1, "worst", number, kinds)
        part.audit(clips, "worst", number, fraction=1.0)
        lines = (bench.folder / CLIPS_FILE).read_text("utf-8").splitlines()[:WORST]
        precisions.append(float(np.mean([json.loads(line)["id"] in bad for line in lines])))
    mean = float(np.mean(precisions))
    print("worst", mean, precisions, flush=True)
    low, high = wilson(round(mean * WORST), WORST)
    return {"precision": mean, "low": low, "high": high, "count": WORST, "corpora": precisions}


def _proportion(successes: int, count: int) -> dict[str, float]:
    low, high = wilson(successes, count)
    return {"value": successes / count, "low": low, "high": high, "count": count}


if __name__ == "__main__":
    main()
