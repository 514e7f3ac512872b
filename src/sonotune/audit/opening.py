"""An aligner opened to measure clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sonotune.alignment.base import AlignerSettings
from sonotune.alignment.open import open_with_identity
from sonotune.audit.measure import Measurer
from sonotune.types import Clip


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedMeasurer:
    """A measurer, and what its aligner is.

    Attributes:
        measurer: Ready for use.
        model: Aligner, family, checkpoint and digest, as a report has them.
    """

    measurer: Measurer
    model: dict[str, str | None]


def open_measurer(
    checkpoint: str,
    clips: Sequence[Clip],
    *,
    aligner: str = "auto",
    language: str | None = None,
    text: str = "basic",
    transcribe: bool = True,
    file: Path | None = None,
) -> OpenedMeasurer:
    """Open a model that aligns, to measure clips with it.

    Args:
        checkpoint: Packaged, hub or local model, adapter folder, or run directory.
        clips: What is to be measured; their languages are checked.
        aligner: Registry name; `auto` takes that of the model's family.
        language: Of clips that name none.
        text: Normaliser of transcripts (registry name).
        transcribe: Whether the model's own transcript is wanted, by which texts are compared.
        file: Where what was measured is kept; None keeps nothing.

    Raises:
        ConfigError: There is no aligner of that name, or the model does not know a language.
        ModelError: Nothing usable is there, or the model cannot align.
        ManifestError: The file is damaged.
    """
    settings = AlignerSettings(language=language, text=text, transcribe=transcribe)
    opened = open_with_identity(checkpoint, name=aligner, settings=settings)
    named = dict.fromkeys(clip.language or language for clip in clips)
    opened.aligner.check_languages([one for one in named if one is not None])
    measurer = Measurer(aligner=opened.aligner, identity=opened.identity, normalizer=text, file=file)
    return OpenedMeasurer(measurer=measurer, model=opened.to_json())
