"""What the gradients say of every way to choose ranks, before a single step is taken.

    python benchmarks/ablation/oracle.py FOLDER --corpora fsdd_theo codec words --rank 4 --out results.json

FOLDER is that of `corpora.py`. For each corpus the loss of 32 training clips is differentiated along the 64 leading
directions of the input of every linear. A plan of ranks can gain, to first order and with whitened inputs, at most the
sum of the best r directions of each module; the plan that spends its budget on the largest of them by cost is the
oracle. Written down: what share of the oracle's gain each plan could reach, and how its evidence goes along with it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from sonotune.adapters.calibration.calibrate import collect
from sonotune.adapters.ranks.choose import adapted_modules, calibration_clips
from sonotune.adapters.ranks.plan import Budget
from sonotune.config.load import load_run_config
from sonotune.registry import resolve
from sonotune.runs import code_version, environment
from sonotune.training.adaptation import rank_settings
from sonotune.training.inputs import load_inputs
from sonotune.training.runtime import set_up_compute

PLANS = {
    "uniform": ("uniform", 0.0),
    "entropy_half": ("entropy", 0.5),
    "entropy_full": ("entropy", 1.0),
    "inverse": ("inverse", 0.5),
    "shuffled": ("shuffled", 0.5),
    "random_1": ("random", 0.5),
    "eva": ("eva", 1.0),
    "gradient": ("gradient", 0.5),
    "oracle": ("gradient_eva", 1.0),
}
"""Name -> allocator and its gamma."""
DIRECTIONS, GRADIENT_CLIPS = 64, 32


def main() -> None:
    """Measure every corpus and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--corpora", nargs="+", default=["fsdd_theo", "codec", "words"])
    parser.add_argument("--model", default="whisper_nano")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = {name: look(options.folder / name / "train.jsonl", options.model, options.rank) for name in options.corpora}
    for name, body in found.items():
        print(f"\n{name}: share of the oracle's gain that ranks could reach")
        for plan, share in body["reach"].items():
            print(f"  {plan:<14}{100 * share:6.1f} %")
        print("  rank correlation over modules of the effective rank of the input with")
        for what, value in body["correlation"].items():
            print(f"    {what:<48}{value:+.2f}")
    if options.out is not None:
        body = {"rank": options.rank, "model": options.model, "corpora": found, "code": code_version()}
        options.out.write_text(json.dumps({**body, "machine": environment()}, indent=1) + "\n", "utf-8")


def look(train: Path, model: str, rank: int) -> dict[str, Any]:
    """What the gradients of a corpus say."""
    words = [f"model={model}", f"data.train={train}", "data.allow_outside_root=true", f"adapter.rank={rank}"]
    config = load_run_config(words, require=("data.train",)).config
    compute = set_up_compute(config.training.precision)
    inputs = load_inputs(config, compute)
    settings, loaded = rank_settings(config), inputs.opened.loaded
    sites = adapted_modules(loaded, settings)
    evidence = collect(
        loaded,
        inputs.calibration_objective,
        calibration_clips(inputs.prepared.clips, settings),
        tokens=settings.tokens,
        autocast=compute.accelerator.autocast,
        directions=DIRECTIONS,
        gradient_clips=GRADIENT_CLIPS,
        names=[site.name for site in sites],
    ).evidence
    falling = {site.name: np.sort(evidence.gains[site.name])[::-1] for site in sites}
    reach = {}
    for name, (allocator, gamma) in PLANS.items():
        budget = Budget(rank=rank, gamma=gamma)
        plan = resolve("allocators", allocator)().allocate(sites, budget, evidence=evidence, seed=1)
        reach[name] = sum(float(falling[module][:given].sum()) for module, given in plan.ranks.items())
    most = reach["oracle"]
    ranks_of = [evidence.effective_ranks[site.name] for site in sites]
    compared = {
        "all that its gradient could gain": [float(falling[site.name].sum()) for site in sites],
        "the same by parameter": [float(falling[site.name].sum()) / site.cost for site in sites],
        "what the last rank of uniform could gain, by parameter": [
            float(falling[site.name][rank - 1]) / site.cost for site in sites
        ],
        "directions that its gain is spread over": [_spread(falling[site.name]) for site in sites],
    }
    return {
        "reach": {name: value / most for name, value in reach.items()},
        "correlation": {what: float(scipy.stats.spearmanr(ranks_of, of).statistic) for what, of in compared.items()},
        "effective_ranks": [min(ranks_of), float(np.median(ranks_of)), max(ranks_of)],
        "modules": len(sites),
    }


def _spread(gains: np.ndarray) -> float:
    shares = gains / gains.sum()
    return float(np.exp(scipy.stats.entropy(shares)))


if __name__ == "__main__":
    main()
