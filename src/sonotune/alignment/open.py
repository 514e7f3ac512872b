"""Open an aligner: its checkpoint, and the class that can align with such a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any, Final, Literal

import torch

from sonotune.alignment.base import Aligner, AlignerSettings
from sonotune.errors import ModelError
from sonotune.loading import choose_family, content_digests, find_adapter, model_folder, open_model
from sonotune.models.base import ModelFamily
from sonotune.models.checkpoints import read_config
from sonotune.registry import resolve
from sonotune.runs.files import digest_json
from sonotune.types import Context

FAMILY_ALIGNERS: Final = MappingProxyType({"ctc": "ctc", "whisper": "whisper"})
"""Family of models -> the aligner that takes them; Qwen3's forced aligner is in no table of families."""

MULTILINGUAL: Final = "MahmoudAshraf/mms-300m-1130-forced-aligner"
"""MMS fine-tuned for alignment in 1,130 languages, over Latin letters (`alignment.romanize`). CC BY-NC 4.0."""
PRESETS: Final = MappingProxyType(
    {
        "ar": "jonatasgrosman/wav2vec2-large-xlsr-53-arabic",
        "de": "jonatasgrosman/wav2vec2-large-xlsr-53-german",
        "el": "jonatasgrosman/wav2vec2-large-xlsr-53-greek",
        "en": "facebook/wav2vec2-base-960h",
        "es": "jonatasgrosman/wav2vec2-large-xlsr-53-spanish",
        "fa": "jonatasgrosman/wav2vec2-large-xlsr-53-persian",
        "fi": "jonatasgrosman/wav2vec2-large-xlsr-53-finnish",
        "fr": "jonatasgrosman/wav2vec2-large-xlsr-53-french",
        "he": "imvladikon/wav2vec2-xls-r-300m-hebrew",
        "hu": "jonatasgrosman/wav2vec2-large-xlsr-53-hungarian",
        "it": "jonatasgrosman/wav2vec2-large-xlsr-53-italian",
        "ja": "jonatasgrosman/wav2vec2-large-xlsr-53-japanese",
        "ko": "kresnik/wav2vec2-large-xlsr-korean",
        "nl": "jonatasgrosman/wav2vec2-large-xlsr-53-dutch",
        "pl": "jonatasgrosman/wav2vec2-large-xlsr-53-polish",
        "pt": "jonatasgrosman/wav2vec2-large-xlsr-53-portuguese",
        "ru": "jonatasgrosman/wav2vec2-large-xlsr-53-russian",
        "zh": "jonatasgrosman/wav2vec2-large-xlsr-53-chinese-zh-cn",
    }
)
"""ISO 639-1 code -> a CTC model on the hub whose vocabulary is that language's own letters."""


def preset_for(language: str) -> str:
    """A hub checkpoint that aligns a language: its own, or the multilingual one."""
    return PRESETS.get(language, MULTILINGUAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedAligner:
    """An aligner, and what it is.

    Attributes:
        aligner: Ready for use.
        family: Of its model.
        checkpoint: What the user named.
        identity: Digest of the weights, with those of an adapter, and of the settings: what was measured with another
            one is measured again.
    """

    aligner: Aligner
    family: str
    checkpoint: str
    identity: str

    def to_json(self) -> dict[str, str | None]:
        """What a report says of it."""
        return {
            "aligner": self.aligner.name,
            "family": self.family,
            "checkpoint": self.checkpoint,
            "digest": self.identity,
        }


def open_aligner(
    checkpoint: str,
    *,
    name: str = "auto",
    settings: AlignerSettings | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    device: torch.device | str | None = None,
    revision: str | None = None,
    context: Context | None = None,
) -> Aligner:
    """Open a checkpoint, adapter or run as an aligner; see `open_with_identity`."""
    return open_with_identity(
        checkpoint,
        name=name,
        settings=settings,
        precision=precision,
        device=device,
        revision=revision,
        context=context,
    ).aligner


def open_with_identity(
    checkpoint: str,
    *,
    name: str = "auto",
    settings: AlignerSettings | None = None,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    device: torch.device | str | None = None,
    revision: str | None = None,
    context: Context | None = None,
) -> OpenedAligner:
    """Open a checkpoint, adapter or run as an aligner, and say which one it is.

    Args:
        checkpoint: Packaged, hub or local model, adapter folder, or run directory.
        name: Registry name of the aligner; `auto` takes that of the model's family.
        settings: What a user decides; None takes the defaults.
        precision: Of the matrix products of quantised weights and adapters.
        device: Where to put the model; None takes a CUDA device where there is one.
        revision: Hub revision.
        context: How much of the model's window is computed; None takes what it was trained in.

    Raises:
        ConfigError: There is no aligner of that name.
        ModelError: Nothing usable is there, or a model of its family cannot align.
    """
    forced = _qwen3_family(checkpoint, revision)
    if forced is not None:
        family, fitting = forced, "qwen3"
    else:
        family = choose_family(checkpoint, revision=revision)
        fitting = FAMILY_ALIGNERS.get(family.name, "")
    if name == "auto" and not fitting:
        known = ", ".join(sorted(FAMILY_ALIGNERS))
        raise ModelError(
            f"{checkpoint} cannot align: its family is {family.name}; allowed are models of {known}, and Qwen3's "
            "forced aligner. Take one of these, such as assets:ctc-nano."
        )
    kind: Any = resolve("aligners", fitting if name == "auto" else name)
    chosen = device if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
    opened = open_model(
        checkpoint, family=family, revision=revision, context=context, precision=precision, device=chosen
    )
    asked = AlignerSettings() if settings is None else settings
    aligner: Aligner = kind(opened.loaded, asked)
    decisive = {"language": asked.language, "text": asked.text, "transcribe": asked.transcribe, "precision": precision}
    loaded = opened.loaded
    weights = content_digests(checkpoint, loaded)
    return OpenedAligner(
        aligner=aligner,
        family=family.name,
        checkpoint=checkpoint,
        identity=digest_json([aligner.name, *weights, loaded.context, asdict(loaded.thinning), decisive, _versions()]),
    )


def _versions() -> dict[str, str | None]:
    """Of what turns transcripts into tokens and scores: what another one measured is not taken over."""
    names = ("sonotune", "num2words", "hebrew-num2words", "uroman")
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _qwen3_family(checkpoint: str, revision: str | None) -> ModelFamily | None:
    """The family of Qwen3's forced aligner, where the checkpoint is one."""
    if find_adapter(checkpoint) is not None:
        return None
    config = read_config(model_folder(checkpoint), revision)
    if "Qwen3ASRForTokenClassification" not in (config.architectures or ()):
        return None
    from sonotune.alignment.qwen3 import Qwen3AlignerFamily  # noqa: PLC0415

    family: ModelFamily = Qwen3AlignerFamily()
    return family
