"""Settings of frame merging."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sonotune.config.section import LATER, Section

MergeRule = Literal["similarity", "noise_aware", "noise_shuffled", "random", "uniform", "energy"]
_Ratio = Annotated[float, Field(ge=0, le=0.9)]


class FrameMergingConfig(Section):
    """Neighbouring positions that are merged into one, so that less is computed."""

    ratio: Literal["auto"] | _Ratio = Field(default="auto", json_schema_extra=LATER)
    """Share of a clip's own positions that are merged away by the end of the encoder (Whisper, wav2vec 2.0, HuBERT).
    `auto` merges as the checkpoint was trained to, a published one not at all; where this or `audio_ratio` is given,
    the whole section holds."""
    layers: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field(default=(), json_schema_extra=LATER)
    """Layers of the encoder after which pairs are merged, from 1; empty takes a quarter, half and three quarters of
    them."""
    rule: MergeRule = Field(default="similarity", json_schema_extra=LATER)
    """Which neighbours are merged first: those with the most similar keys (`similarity`), the same with distances that
    may be quantisation noise made shorter (`noise_aware`, for quantised weights) and its placebo with the noise of
    other frames (`noise_shuffled`), drawn ones (`random`), at an even rate (`uniform`), or the quietest (`energy`)."""
    noise_weight: float = Field(default=0.25, ge=0, lt=1, json_schema_extra=LATER)
    """Largest relative change that quantisation noise makes to a distance; 0 is `similarity`."""
    min_positions: int = Field(default=25, ge=1, le=100_000, json_schema_extra=LATER)
    """Encoder positions that a clip keeps at least, if it has as many; 50 are a second."""
    audio_ratio: Literal["auto"] | _Ratio = Field(default="auto", json_schema_extra=LATER)
    """Share of the audio tokens that are merged away before a language model reads them (speech LLM, Qwen3-ASR)."""
    audio_method: Literal["merge", "mean"] = Field(default="merge", json_schema_extra=LATER)
    """How audio tokens are merged: the most similar neighbours, or means of neighbours at an even rate."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers is {list(self.layers)}, and a layer stands twice; name each once")
        return self

    @property
    def asked(self) -> bool:
        """Whether anything is asked for; else the checkpoint says what is merged."""
        return not (self.ratio == "auto" and self.audio_ratio == "auto")
