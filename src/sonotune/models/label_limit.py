"""Transcripts that are longer than a model, or a setting, has room for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sonotune.models.base import LoadedModel, SpeechFamily
from sonotune.types import Finding


def transcripts_too_long(problems: Mapping[str, str], clips: int) -> list[Finding]:
    """That transcripts are left out which the model has no room for; clip id -> what the family says of it."""
    if not problems:
        return []
    first, problem = next(iter(problems.items()))
    message = (
        f"{len(problems)} of {clips} training transcripts are longer than the model can write, and their clips are "
        f"left out of training. Of clip {first!r}: {problem} `sonotune data resegment` cuts "
        "recordings between their words, each part with its own text."
    )
    return [
        Finding(
            check="data.text_too_long",
            severity="warning",
            message=message,
            clip_ids=tuple(problems),
            measured=float(len(problems)),
            unit="clips",
        )
    ]


class TokensAround:
    """How many tokens a family puts around every text: what it encodes of an empty one, a prompt and an end token."""

    def __init__(self, family: SpeechFamily, loaded: LoadedModel) -> None:
        self._family, self._loaded = family, loaded
        self._known: dict[str | None, int] = {}

    def tokens(self, language: str | None) -> int:
        """Of a clip in this language."""
        if language not in self._known:
            self._known[language] = len(self._family.encode_text(self._loaded, "", language))
        return self._known[language]


class LabelLimit:
    """The most tokens of a transcript that are learned.

    A target that was cut loses its end, so the model is not taught to stop there. Families that are aligned with the
    audio, as CTC is, have no end to leave out: a part of the text would teach that the rest of the clip is silence.
    """

    def __init__(self, tokens: int | None, around: TokensAround, *, aligned: bool) -> None:
        self._tokens, self._around, self._aligned = tokens, around, aligned
        self._cut: list[str] = []
        self._left_out: list[str] = []

    def apply(self, ids: NDArray[np.int64], clip_id: str, language: str | None) -> NDArray[np.int64] | None:
        """The ids that are learned of a clip; None leaves it out."""
        if self._tokens is None:
            return ids
        around = self._around.tokens(language)
        if len(ids) - around <= self._tokens:
            return ids
        if around == 0 or self._aligned:
            self._left_out.append(clip_id)
            return None
        self._cut.append(clip_id)
        return ids[: around - 1 + self._tokens]

    def findings(self, clips: int) -> list[Finding]:
        """What was cut short and what was left out, as settings ask."""
        found = []
        for check, ids, outcome in (
            ("text.truncated", self._cut, "learned up to there, without an end"),
            ("data.too_many_tokens", self._left_out, "left out, for CTC would learn the rest of a clip as silence"),
        ):
            if ids:
                message = (
                    f"{len(ids)} of {clips} transcripts have more than data.max_label_tokens={self._tokens} and are "
                    f"{outcome}. Raise the limit or cut the clips."
                )
                found.append(
                    Finding(
                        check=check,
                        severity="warning",
                        message=message,
                        clip_ids=tuple(ids),
                        measured=float(len(ids)),
                        limit=float(self._tokens or 0),
                        unit="tokens",
                    )
                )
        return found
