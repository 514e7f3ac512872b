"""Calibration: what training clips say of every adaptable linear, as evidence for an allocator.

The clips are heard one by one (`activations`), a uniform sample of tokens is kept (`token_sample`) and
its spectrum measured (`spectrum`); where asked for, the loss is differentiated along the leading directions
(`direction_gradients`). The result is the same for any order of the clips, and the model is left as it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

from sonotune.adapters.calibration.activations import (
    Autocast,
    DistinctInput,
    Objective,
    TokenSample,
    sample_activations,
)
from sonotune.adapters.calibration.direction_gradients import GradientEvidence, gradient_gains
from sonotune.adapters.calibration.spectrum import LEAST_ROWS, Directions, Spectrum, leading_directions, measure
from sonotune.adapters.calibration.token_sample import joint_rows
from sonotune.adapters.ranks.plan import Importance
from sonotune.errors import AdapterError
from sonotune.models.base import LoadedModel
from sonotune.processes import SINGLE_PROCESS, Processes
from sonotune.runs import torch_seed
from sonotune.types import Clip, Finding

__all__ = ["Calibration", "MeasuredInput", "collect", "gradient_gains", "measure_sample", "sample_activations"]

_ROWS_PER_RANK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredInput:
    """What was found of one distinct input.

    Attributes:
        modules: Full names of the modules it goes into.
        seen: Tokens that were sampled from.
        spectra: `all`, and `audio` and `text` where it has both -> what was measured of the sample of that kind.
        directions: Of the sample of all, where asked for.
    """

    modules: tuple[str, ...]
    seen: int
    spectra: Mapping[str, Spectrum]
    directions: Directions | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What was found.

    Attributes:
        inputs: Every distinct input.
        evidence: What an allocator reads.
        gradient: What the gradients say, where asked for.
        clips: Clips that were heard.
        findings: What a person should see.
        seconds: Wall time.
        nbytes: Bytes that the sample took.
    """

    inputs: tuple[MeasuredInput, ...]
    evidence: Importance
    gradient: GradientEvidence | None
    clips: int
    findings: tuple[Finding, ...]
    seconds: float
    nbytes: int

    def effective_ranks(self, kind: str = "all") -> dict[str, float]:
        """Effective rank of every module whose input has tokens of the kind: `all`, `audio` or `text`."""
        return {
            name: item.spectra[kind].effective_rank
            for item in self.inputs
            if kind in item.spectra
            for name in item.modules
        }

    def spectra(self) -> dict[str, dict[str, dict[str, float]]]:
        """Kind -> module -> what was measured of its input, for a file."""
        kinds = sorted({kind for item in self.inputs for kind in item.spectra})
        return {
            kind: {
                name: asdict(item.spectra[kind])
                for item in self.inputs
                if kind in item.spectra
                for name in item.modules
            }
            for kind in kinds
        }

    def check_rows(self, ranks: Mapping[str, int]) -> None:
        """Refuse ranks that the sample is too small to speak of.

        Raises:
            AdapterError: An input has fewer rows than four times the rank of a module it goes into.
        """
        rows = {name: item.spectra["all"].rows for item in self.inputs for name in item.modules}
        short = [name for name, rank in ranks.items() if name in rows and rows[name] < _ROWS_PER_RANK * rank]
        if short:
            worst = min(short, key=lambda name: rows[name] / ranks[name])
            raise AdapterError(
                f"calibration kept {rows[worst]} positions of the input of {worst}, and a rank of {ranks[worst]} needs "
                f"{_ROWS_PER_RANK * ranks[worst]}; {len(short)} modules have too few. Raise allocation.clips or "
                "allocation.tokens, or lower allocation.max_rank."
            )

    def summary(self) -> dict[str, Any]:
        """For the log of a run."""
        spectra = [item.spectra["all"] for item in self.inputs]
        ranks = sorted(spectrum.effective_rank for spectrum in spectra)
        return {
            "clips": self.clips,
            "inputs": len(self.inputs),
            "modules": sum(len(item.modules) for item in self.inputs),
            "tokens": {
                "seen": max(item.seen for item in self.inputs),
                "least": min(one.rows for one in spectra),
                "most": max(one.rows for one in spectra),
                "dropped": sum(one.dropped for one in spectra),
            },
            "effective_rank": {"least": ranks[0], "median": ranks[len(ranks) // 2], "largest": ranks[-1]},
            "gradient_clips": 0 if self.gradient is None else self.gradient.clips,
            "findings": [finding.message for finding in self.findings],
            "seconds": round(self.seconds, 3),
            "bytes": self.nbytes,
        }


def collect(
    loaded: LoadedModel,
    objective: Objective,
    clips: Sequence[Clip],
    *,
    tokens: int = 1024,
    seed: int = 0,
    autocast: Autocast = nullcontext,
    directions: int = 0,
    gradient_clips: int = 0,
    names: Sequence[str] | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Calibration:
    """Run clips through a model and measure what goes into its linears.

    Args:
        loaded: The model as adapters will find it, quantised if it is to be.
        objective: Gives targets and the loss.
        clips: Training clips; 64 to 256 are enough for 1024 tokens.
        tokens: Rows kept of each input, of each kind.
        seed: Of the sample.
        autocast: Makes the precision context of each forward pass.
        directions: Leading directions of each input; 0 finds none.
        gradient_clips: Of how many clips, drawn by seed and id, the gradient is taken; 8 to 32 are enough. Needs
            `directions`.
        names: Modules; None takes every adaptable one.
        processes: Share the clips; each has the sample of all in the end. Gradients are taken by each.

    Raises:
        AdapterError: No clip can be used, a module is never reached, or too few rows are finite.
        ModelError: The family does not know the rows of a module.
    """
    started_s = time.monotonic()
    shared = len(clips) >= processes.world_size
    heard = sample_activations(
        loaded,
        objective,
        processes.shard(clips) if shared else clips,
        tokens=tokens,
        seed=seed,
        autocast=autocast,
        names=names,
    )
    sample = reduce(TokenSample.merge, processes.all_gather(heard)) if shared else heard
    nbytes = sample.nbytes
    inputs = measure_sample(sample, directions=directions, keep=False)
    gradient = None
    if gradient_clips:
        # Not the first by name, which would be those of one speaker or one word.
        drawn = sorted(sample.clips, key=lambda clip_id: (torch_seed(seed, "gradient", clip_id), clip_id))
        chosen = set(drawn[:gradient_clips])
        looked_at = sorted((clip for clip in clips if clip.id in chosen), key=lambda clip: clip.id)
        known = {name: item.directions for item in inputs for name in item.modules if item.directions is not None}
        gradient = gradient_gains(loaded, objective, looked_at, known, autocast=autocast)
    return Calibration(
        inputs=inputs,
        evidence=_evidence(inputs, gradient),
        gradient=gradient,
        clips=len(sample.clips),
        findings=(*sample.findings, *_warnings(inputs, tokens)),
        seconds=time.monotonic() - started_s,
        nbytes=nbytes,
    )


def measure_sample(sample: TokenSample, *, directions: int = 0, keep: bool = True) -> tuple[MeasuredInput, ...]:
    """Measure every distinct input of a sample.

    Args:
        sample: What was kept.
        directions: Leading directions of each input.
        keep: Whether the rows of an input are wanted after it has been measured.

    Raises:
        AdapterError: Too few rows of an input are finite; the message names it.
    """
    found = []
    for item in sample.inputs:
        found.append(_measured(sample, item, directions))
        if not keep:
            for part in sample.parts(item).values():
                part.forget(item.modules[0])
    return tuple(found)


def _measured(sample: TokenSample, item: DistinctInput, directions: int) -> MeasuredInput:
    parts, name = sample.parts(item), item.modules[0]
    try:
        rows_ND = joint_rows(list(parts.values()), name)
        spectra = {"all": measure(rows_ND)}
        if len(parts) > 1:
            spectra |= {kind: measure(part.rows(name)) for kind, part in parts.items() if len(part) >= LEAST_ROWS}
        found = leading_directions(rows_ND, directions) if directions else None
    except AdapterError as error:
        raise AdapterError(f"the input of {name} cannot be measured: {error}") from error
    return MeasuredInput(
        modules=item.modules, seen=sum(part.seen for part in parts.values()), spectra=spectra, directions=found
    )


def _evidence(inputs: Sequence[MeasuredInput], gradient: GradientEvidence | None) -> Importance:
    known = {name: item.directions for item in inputs for name in item.modules if item.directions is not None}
    return Importance(
        effective_ranks={name: item.spectra["all"].effective_rank for item in inputs for name in item.modules},
        shares={name: found.shares.numpy() for name, found in known.items()},
        directions={name: found.vectors.numpy() for name, found in known.items()},
        gains={} if gradient is None else dict(gradient.gains),
    )


def _warnings(inputs: Sequence[MeasuredInput], tokens: int) -> list[Finding]:
    """What makes the numbers less sure: few rows, or rows that were not finite."""
    found = []
    few = {item.modules[0]: item.spectra["all"].rows for item in inputs if item.spectra["all"].rows < tokens}
    if few:
        name = min(few, key=few.__getitem__)
        message = (
            f"calibration heard fewer than {tokens} positions of {len(few)} of {len(inputs)} inputs, the fewest "
            f"({few[name]}) of {name}; an effective rank cannot exceed that number and is compared with others of "
            "more. Raise allocation.clips."
        )
        found.append(Finding(check="calibration.few_tokens", severity="warning", message=message))
    broken = {item.modules[0]: item.spectra["all"].dropped for item in inputs if item.spectra["all"].dropped}
    if broken:
        name = max(broken, key=broken.__getitem__)
        message = (
            f"{sum(broken.values())} positions of {len(broken)} inputs held NaN or infinity and were left out, most "
            f"({broken[name]}) of {name}. Take training.precision=bf16 or fp32."
        )
        found.append(Finding(check="calibration.not_finite", severity="warning", message=message))
    return found
