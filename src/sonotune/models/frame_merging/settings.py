"""How many positions of a clip are merged, and after which layers.

The number of pairs is a function of the clip's own length and of nothing else. So a clip is computed alike alone and
in any batch, and the shapes of a batch are known from the lengths of its clips, before anything is computed.

Source: Bolya et al. 2023, token merging (arXiv 2210.09461); Li et al. 2023, adjacent token merging for speech
(arXiv 2306.16009).

Shape letters: B clips, P positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from sonotune.errors import ConfigError

AudioMethod = Literal["merge", "mean"]
MergePart = Literal["encoder", "audio"]
NOISE_RULES: Final = ("noise_aware", "noise_shuffled")
"""Rules that need to know the error of a quantised weight."""
NO_AUDIO_TOKENS: Final = "no language model reads its audio as tokens"
"""Why a family has no audio tokens to merge."""
_QUARTERS: Final = (1, 2, 3)
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameMerging:
    """What is merged.

    Attributes:
        ratio: Share of a clip's own encoder positions that are merged away by the end of the encoder.
        layers: Layers after which pairs are merged, from 1; empty stands for a quarter, half and three quarters of
            them.
        rule: Which pairs are merged first (`frame_merging.rules.RULES`).
        noise_weight: Largest relative change that quantisation noise makes to a distance, from 0 to below 1.
        min_positions: Positions that a clip keeps at least, if it has as many.
        audio_ratio: Share of the audio tokens that are merged away between projector and language model.
        audio_method: `merge` joins the most similar neighbours, `mean` takes the means of neighbours at an even rate.
    """

    ratio: float = 0.0
    layers: tuple[int, ...] = ()
    rule: str = "similarity"
    noise_weight: float = 0.25
    min_positions: int = 25
    audio_ratio: float = 0.0
    audio_method: AudioMethod = "merge"

    @classmethod
    def read(cls, entries: Mapping[str, Any]) -> FrameMerging:
        """What a record says."""
        return cls(**{**entries, "layers": tuple(entries.get("layers", ()))})

    def plain(self) -> dict[str, Any]:
        """As a record has it."""
        return {**asdict(self), "layers": list(self.layers)}

    def described(self) -> str:
        """All settings in one line."""
        return ", ".join(f"{name} {value}" for name, value in self.plain().items())

    @property
    def parts(self) -> tuple[MergePart, ...]:
        """Where anything is merged."""
        return (*(("encoder",) if self.ratio else ()), *(("audio",) if self.audio_ratio else ()))

    def after(self, depth: int) -> tuple[int, ...]:
        """Layers after which pairs are merged, rising, for an encoder of so many layers.

        Raises:
            ConfigError: It has no such layers, or so many positions cannot be merged after so few of them.
        """
        chosen = tuple(sorted(set(self.layers))) or tuple(sorted({max(1, depth * part // 4) for part in _QUARTERS}))
        if chosen[0] < 1 or chosen[-1] > depth:
            raise ConfigError(
                f"frame_merging.layers={list(self.layers)} names layers that the encoder does not have; it has 1 to "
                f"{depth}. Leave the setting out for a quarter, half and three quarters of them."
            )
        most = 1 - 0.5 ** len(chosen)
        if self.ratio > most:
            raise ConfigError(
                f"frame_merging.ratio={self.ratio:g} cannot be reached after {len(chosen)} of {depth} layers, each of "
                f"which halves the positions at most; the largest ratio is {most:g}. Lower it, or name more "
                "frame_merging.layers."
            )
        return chosen

    def remaining(self, own: int, depth: int) -> dict[int, int]:
        """Layer -> own positions of a clip after the pairs behind it are merged.

        Args:
            own: Positions of the clip itself.
            depth: Layers of the encoder.
        """
        layers, left = self.after(depth), own
        found = {}
        for stage, layer in enumerate(layers, 1):
            wanted = math.ceil(own * (1 - self.ratio) ** (stage / len(layers)) - _ROUNDING)
            fewest = max(wanted, min(own, self.min_positions))
            left -= max(0, min(left - fewest, left // 2))
            found[layer] = left
        return found

    def audio_tokens(self, tokens: int) -> int:
        """Audio tokens that the language model reads of so many."""
        return math.ceil(tokens * (1 - self.audio_ratio) - _ROUNDING)


NO_MERGING: Final = FrameMerging()


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeStep:
    """What is merged of a batch after one layer.

    Attributes:
        before: Own positions of each clip.
        after: Own positions that are left of each.
        width: Positions of the batch that are left: those of the clip that has most, with what is kept behind it.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    width: int

    @property
    def pairs(self) -> tuple[int, ...]:
        """Pairs of each clip."""
        return tuple(one - other for one, other in zip(self.before, self.after, strict=True))


def merge_steps(merging: FrameMerging, *, depth: int, own: Sequence[int], kept: Sequence[int]) -> dict[int, MergeStep]:
    """Layer -> what is merged after it; layers after which no clip of the batch has a pair are left out.

    Args:
        merging: The settings.
        depth: Layers of the encoder.
        own: Own positions of each clip.
        kept: Positions of each that are no padding: its own, and what of the window is kept behind them.
    """
    if "encoder" not in merging.parts:
        return {}
    left = list(own)
    ends = [merging.remaining(size, depth) for size in own]
    steps = {}
    for layer in merging.after(depth):
        after = [one[layer] for one in ends]
        if after != left:
            width = max(all_ - size + rest for all_, size, rest in zip(kept, own, after, strict=True))
            steps[layer] = MergeStep(before=tuple(left), after=tuple(after), width=width)
        left = after
    return steps
