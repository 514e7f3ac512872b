"""The seam of aligners: an aligner is one class in a file of this package and one line in `registry.ALIGNERS`.

Shape letters: U tokens of a transcript, N rows of evidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sonotune.data.windows import WINDOW_SLACK_S
from sonotune.types import Clip, Finding, Word

if TYPE_CHECKING:
    from sonotune.models.base import LoadedModel  # torch: what reads the scores of an alignment works without


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """How likely a model finds a transcript, row by row.

    A row is a frame of a CTC model, or a token of a model that writes one after the other. Both arrays are of the same
    distribution, so their difference is 0 where the model would have written the same and below it elsewhere,
    whatever the noise of the channel.

    Attributes:
        given: Log-probability of what the transcript has there (N,) float32.
        best: Log-probability of the best symbol there (N,) float32, nowhere below `given`.
        window: Rows over which a local mean is taken.
    """

    given: NDArray[np.float32]
    best: NDArray[np.float32]
    window: int


class DetectedLanguage(NamedTuple):
    """The language that a model takes a clip to be in, whatever the clip says of itself.

    Attributes:
        code: As the model names it.
        probability: Among the languages that the model knows.
    """

    code: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """A transcript placed in time.

    Attributes:
        clip_id: The clip.
        words: Every word of the transcript as the manifest writes it, in order, in seconds from the start of the clip,
            with its mean token posterior as its score; None for a word of which the model knows no symbol.
        token_words: Index into `words` of each token (U,) int64.
        token_starts_s: Where each token begins (U,) float64, rising.
        token_ends_s: Where each token ends (U,) float64.
        token_posteriors: Mean probability of each token at its place (U,) float32.
        evidence: Row by row; None of an aligner that has no probabilities.
        transcript: What the model writes of the clip by itself; None where that was not asked for.
        unknown_share: Share of the transcript's characters that the model has no symbol for.
        disordered_share: Share of the times that a model names freely which are in the wrong order, before they were
            put right; None of an aligner that can only name times in order.
        language: That the model detects; None of a model that tells none.
    """

    clip_id: str
    words: tuple[Word, ...]
    token_words: NDArray[np.int64]
    token_starts_s: NDArray[np.float64]
    token_ends_s: NDArray[np.float64]
    token_posteriors: NDArray[np.float32]
    evidence: Evidence | None
    transcript: str | None = None
    unknown_share: float = 0.0
    disordered_share: float | None = None
    language: DetectedLanguage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignerSettings:
    """What a user decides; each aligner reads what concerns it.

    Attributes:
        batch_seconds: Computed seconds of audio in one batch at most.
        batch_max_clips: Clips in one batch at most.
        language: Of clips that name none.
        text: Normaliser of transcripts before they are aligned (registry name).
        transcribe: Whether `Alignment.transcript` is wanted.
    """

    batch_seconds: float = 240.0
    batch_max_clips: int = 32
    language: str | None = None
    text: str = "basic"
    transcribe: bool = True


Recording = tuple[Path, float, float, int | None]


def recording(clip: Clip) -> Recording:
    """What is heard in a clip, whatever its id and transcript: clips that agree in it need be computed once."""
    return clip.path, clip.start_s, clip.duration_s, clip.channel


def takes(aligner: Aligner, clip: Clip) -> bool:
    """Whether a clip is short enough for an aligner."""
    return aligner.max_duration_s is None or clip.duration_s <= aligner.max_duration_s + WINDOW_SLACK_S


class Aligner(Protocol):
    """Places transcripts in time. Made once, for one model.

    Attributes:
        name: In the registry.
        loaded: The model.
        settings: What a user decided.
        max_duration_s: Longest clip that it takes, in seconds; None takes any. A longer one is a finding, and no part
            of an audit: that it cannot be aligned says nothing about its transcript.
    """

    name: str
    loaded: LoadedModel
    settings: AlignerSettings
    max_duration_s: float | None

    def __init__(self, loaded: LoadedModel, settings: AlignerSettings) -> None:
        """Take a model.

        Raises:
            ModelError: The model cannot align.
        """
        ...

    def check_languages(self, languages: Sequence[str]) -> None:
        """Refuse languages that the model does not know.

        Raises:
            ConfigError: Names each of them, and what is known.
        """
        ...

    def align(self, clips: Sequence[Clip]) -> Iterator[Alignment | Finding]:
        """Align clips, in their order, one batch in memory at a time.

        Yields:
            One alignment for each clip, or a finding that names the clip and says why there is none: audio that cannot
            be read, a text without words, a text longer than its audio has room for.
        """
        ...
