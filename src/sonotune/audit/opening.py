"""An aligner opened to measure clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sonotune.alignment.base import Aligner, AlignerSettings
from sonotune.alignment.open import open_with_identity
from sonotune.audit.measure import Measurer
from sonotune.errors import ConfigError
from sonotune.models.precision import Precision
from sonotune.processes import SINGLE_PROCESS, Processes
from sonotune.types import Clip, Context


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
    settings: AlignerSettings | None = None,
    normalizer: str = "basic",
    precision: Precision = "fp32",
    context: Context | None = None,
    file: Path | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> OpenedMeasurer:
    """Open a model that aligns, to measure clips with it.

    Args:
        checkpoint: Packaged, hub or local model, adapter folder, or run directory.
        clips: What is to be measured. A clip in a language that the model does not know is a finding of its own; that
            none is in a language that it knows is refused.
        aligner: Registry name; `auto` takes that of the model's family.
        settings: Of the aligner; None takes the defaults.
        normalizer: Texts are compared in its scoring form (registry name).
        precision: Of the matrix products of quantised weights and adapters.
        context: How much of the model's window is computed; None takes what it was trained in.
        file: Where what was measured is kept; None keeps nothing.
        processes: Share the clips.

    Raises:
        ConfigError: There is no aligner of that name, or the model knows none of the languages.
        ModelError: Nothing usable is there, or the model cannot align.
        ManifestError: The file is damaged.
    """
    asked = AlignerSettings() if settings is None else settings
    opened = open_with_identity(checkpoint, name=aligner, settings=asked, precision=precision, context=context)
    named = dict.fromkeys(clip.language or asked.language for clip in clips)
    _check_languages(opened.aligner, [one for one in named if one is not None])
    measurer = Measurer(
        aligner=opened.aligner, identity=opened.identity, normalizer=normalizer, file=file, processes=processes
    )
    return OpenedMeasurer(measurer=measurer, model=opened.to_json())


def _check_languages(aligner: Aligner, languages: Sequence[str]) -> None:
    refused: list[ConfigError] = []
    for language in languages:
        try:
            aligner.check_languages([language])
        except ConfigError as error:
            refused.append(error)
    if refused and len(refused) == len(languages):
        aligner.check_languages(languages)  # names them all
