"""Does it pay to clean a corpus? A third of its transcripts is corrupted, and a model is trained on what is left.

    python benchmarks/audit/pays.py NAME --model CHECKPOINT --train T --trusted D --test E --seeds 0 1 2

Arms: the transcripts as they are; as many clips dropped at random as the filter drops; filtered; weighted; `star` (CTC
models); and the oracle, which drops exactly the corrupted ones. What aligns is the model that was trained on the
transcripts as they are, calibrated on the trusted clips. A finished arm is kept in the results and not run again.

All arms make as many passes over their clips, so that those with fewer clips make fewer steps. `--equal-steps` then
trains the arms named once more, from the manifests that are there, with as many steps as the first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from sonotune.audit.corruption import Corruption, Corruptor
from sonotune.data.manifest import read_manifest, write_manifest
from sonotune.runs import generator
from sonotune.types import Clip

CORRUPTIONS: Final = (
    Corruption(kind="wrong", share=1.0),
    Corruption(kind="deleted", share=0.3),
    Corruption(kind="inserted", share=0.3),
    Corruption(kind="substituted", share=0.3),
    Corruption(kind="truncated", share=0.3),
)
ARMS: Final = ("as_is", "random", "filtered", "weighted", "star", "oracle")


def main() -> None:
    """Run the arms that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--trusted", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--language")
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=[arm for arm in ARMS if arm != "star"], choices=ARMS)
    parser.add_argument("--work", type=Path, default=Path("runs/pays"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--equal-steps", nargs="*", default=[], choices=ARMS[1:], help="Arms to train again.")
    parser.add_argument("words", nargs="*", help="Further settings of every training.")
    options = parser.parse_intermixed_args()
    file = options.results / f"pays_{options.name}.json"
    options.results.mkdir(exist_ok=True)
    table: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    for seed in options.seeds:
        work = (options.work / f"{options.name}-{seed}").resolve()
        work.mkdir(parents=True, exist_ok=True)
        manifests = _corrupted(options.train, work, options.share, seed)
        for arm in ("as_is", *(arm for arm in options.arms if arm != "as_is")):  # it is the model that aligns
            if f"{arm}-{seed}" in table:
                continue
            row: dict[str, Any] = {"seed": seed, "arm": arm}
            if arm in ("filtered", "random"):
                row |= _filtered(work, manifests, options)
            if arm == "weighted":
                _filter(work, "weight", options)
            if arm == "random":
                _drop_at_random(work, row["dropped"], seed)
            source = {"as_is": "as_is", "star": "as_is"}.get(arm, arm)
            extra = ["training.objective=star"] if arm == "star" else []
            row |= _trained(arm, work / f"{source}.jsonl", work, options, seed, extra)
            _keep(table, f"{arm}-{seed}", row, file)
        for arm in options.equal_steps:
            if (name := f"{arm}-{seed}-steps") not in table:
                steps = _steps(work / "as_is")
                extra = [f"training.max_steps={steps}", "training.max_epochs=1000"]
                row = {"seed": seed, "arm": arm, "steps": steps}
                row |= _trained(f"{arm}-steps", work / f"{arm}.jsonl", work, options, seed, extra)
                _keep(table, name, row, file)
    print(_summary(table))


def _keep(table: dict[str, Any], name: str, row: Mapping[str, Any], file: Path) -> None:
    table[name] = row
    file.write_text(json.dumps(table, indent=1) + "\n", "utf-8")
    print(name, {key: row[key] for key in ("clips", "wer", "precision", "recall") if key in row}, flush=True)


def _steps(run: Path) -> int:
    events = (json.loads(line) for line in (run / "events.jsonl").read_text("utf-8").splitlines())
    return max(int(event["step"]) for event in events if event["kind"] == "step")


def _corrupted(train: Path, work: Path, share: float, seed: int) -> dict[str, bool]:
    """Write the manifests with corrupted transcripts and without; clip -> whether it is corrupted."""
    clips = read_manifest(train, allow_outside_root=True)
    rng = generator(seed, "pays")
    corruptor = Corruptor(clips, seed=seed)
    made: list[Clip] = []
    bad: dict[str, bool] = {}
    for place in rng.permutation(len(clips)).tolist():
        clip = clips[place]
        text = None
        if len(made) < share * len(clips):
            text = corruptor.corrupt(clip, CORRUPTIONS[int(rng.integers(len(CORRUPTIONS)))]).text
            text = text if text is not None else corruptor.corrupt(clip, CORRUPTIONS[0]).text
        bad[clip.id] = text is not None
        made.append(clip if text is None else replace(clip, text=text))
    write_manifest(work / "as_is.jsonl", sorted(made, key=lambda clip: clip.id))
    write_manifest(work / "oracle.jsonl", [clip for clip in clips if not bad[clip.id]])
    return bad


def _filter(work: Path, mode: str, options: argparse.Namespace) -> Any:
    out = work / {"drop": "filtered.jsonl", "weight": "weighted.jsonl"}[mode]
    return _sonotune(
        ["data", "filter", str(work / "as_is.jsonl"), str(out), "--mode", mode, "--model", str(work / "as_is")]
        + ["--trusted", str(options.trusted), "--allow-outside-root"]
        + (["--language", options.language] if options.language else [])
    )


def _filtered(work: Path, bad: Mapping[str, bool], options: argparse.Namespace) -> dict[str, Any]:
    body = _filter(work, "drop", options)
    kept = {clip.id for clip in read_manifest(work / "filtered.jsonl", allow_outside_root=True)}
    dropped = [name for name in bad if name not in kept]
    hits = sum(bad[name] for name in dropped)
    return {
        "dropped": len(dropped),
        "precision": hits / max(1, len(dropped)),
        "recall": hits / sum(bad.values()),
        "bad_share": body["bad_share"],
    }


def _drop_at_random(work: Path, count: int, seed: int) -> None:
    clips = read_manifest(work / "as_is.jsonl", allow_outside_root=True)
    out = set(generator(seed, "pays", "random").permutation(len(clips))[:count].tolist())
    write_manifest(work / "random.jsonl", [clip for place, clip in enumerate(clips) if place not in out])


def _trained(
    arm: str, manifest: Path, work: Path, options: argparse.Namespace, seed: int, extra: Sequence[str]
) -> dict[str, Any]:
    words = [
        f"model.checkpoint={options.model}",
        f"data.train={manifest}",
        f"data.eval={options.trusted}",
        f"data.test={options.test}",
        "data.allow_outside_root=true",
        "evaluation.zero_shot=false",
        "evaluation.temperatures=[0]",
        "training.eval_steps=never",
        f"training.seed={seed}",
        f"run.dir={work / arm}",
        *(word for word in options.words if word.split("=")[0] not in {one.split("=")[0] for one in extra}),
        *extra,
    ]
    if options.language:
        words.append(f"model.language={options.language}")
    body = _sonotune(["train", *words])
    record = json.loads((work / arm / "run.json").read_text("utf-8"))
    clips = sum(1 for line in manifest.read_text("utf-8").splitlines() if line.strip())
    test = record["scores"]["test"]
    kept = {"clips": clips, "wer": test["wer"], "cer": test["cer"], "seconds": body["seconds"]}
    return kept | {"commit": record["code"].get("commit"), "settings": [*extra, *options.words]}


def _sonotune(words: Sequence[str]) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "sonotune", *words, "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(
            f"sonotune {' '.join(words)}\nexit {done.returncode}\n{done.stdout[-500:]}\n{done.stderr[-3000:]}"
        )
    return json.loads(done.stdout)


def _summary(table: Mapping[str, Any]) -> str:
    lines = []
    means: dict[str, float] = {}
    for arm, steps in itertools.product(ARMS, ("", "-steps")):
        rows = [row for name, row in table.items() if re.fullmatch(rf"{arm}-\d+{steps}", name)]
        if rows:
            means[arm + steps] = sum(row["wer"]["value"] for row in rows) / len(rows)
            shown = ", ".join(f"{100 * row['wer']['value']:.1f}" for row in rows)
            lines.append(f"{arm + steps:<16} {100 * means[arm + steps]:5.1f} %  ({shown})")
    if {"as_is", "oracle"} <= means.keys():
        gap = means["as_is"] - means["oracle"]
        lines += [
            f"{arm:<16} recovers {100 * (means['as_is'] - mean) / gap:.0f} % of the gap to the oracle"
            for arm, mean in means.items()
            if arm not in ("as_is", "oracle") and gap > 0
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
