"""Clips scored as they would sound through a chain of `audio.chains`, and results that say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sonotune.audio.augment import WaveformAugmenter
from sonotune.audio.chains import CHAINS
from sonotune.metrics.scores import score_title
from sonotune.types import ChainName, Finding, Score

CHECK = "evaluation.augmented"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationChain:
    """A chain that every scored clip goes through. What it draws is the same for a clip in every evaluation.

    Attributes:
        name: Of the chain.
        seed: Decides the draws, with the id of the clip.
        owners: Id of a window -> id of its clip, so that all windows of a clip are of one room, codec and line.
    """

    name: ChainName
    seed: int = 0
    owners: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, name: ChainName | Literal["none"], seed: int) -> EvaluationChain | None:
        """The chain that is asked for; None for `none`."""
        return None if name == "none" else cls(name=name, seed=seed)

    def __call__(
        self, waveform_S: NDArray[np.float32], sample_rate_hz: int, *, seed: int, epoch: int, clip_id: str
    ) -> NDArray[np.float32]:
        """See `features.batching.WaveformTransform`; the seed is that of the chain, and the epoch the first."""
        augmenter = WaveformAugmenter(chains=(self.name,), chain_probability=1.0)
        owner = self.owners.get(clip_id, clip_id)
        return augmenter(waveform_S, sample_rate_hz, seed=self.seed, epoch=0, clip_id=owner)

    def titled(self, scores: Mapping[str, Score]) -> dict[str, Score]:
        """Scores whose titles say that the audio was changed."""
        return {
            name: replace(score, title=f"{score_title(name, {'title': score.title})} through {self.name}")
            for name, score in scores.items()
        }

    def finding(self) -> Finding:
        """A note that says of the scores what they are of."""
        message = (
            f"the clips were scored through the chain {self.name} (evaluation.augment, seed {self.seed}): this is no "
            "score of the clips as they were recorded."
        )
        return Finding(check=CHECK, severity="note", message=message)

    def to_json(self) -> dict[str, Any]:
        """What was done, for results."""
        steps = [
            {"name": step.name, "probability": step.probability, "limits": dict(step.limits)}
            for step in CHAINS[self.name]
        ]
        return {"chain": self.name, "seed": self.seed, "steps": steps}
