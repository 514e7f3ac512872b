"""What `sonotune compose` is told: words and a file -> the parts of a model and how they are joined.

Words are `setting=value`, such as `projector.kind=perceiver`; a file has the same settings as YAML, and words go before
it. What nobody sets follows from the parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from sonotune.config.kinds import allowed, alternatives, is_text_choice
from sonotune.config.plain_yaml import parse_yaml, read_yaml
from sonotune.errors import ConfigError, problem_list, suggest
from sonotune.wording import counted

Heads = Annotated[int, Field(ge=1, le=512)]


class _Part(BaseModel):
    """Base: frozen, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ProjectorSettings(_Part):
    """What stands between the encoder and the language model."""

    kind: Literal["linear", "mlp", "perceiver", "conv"] = "mlp"
    """Neighbouring states side by side, their mean, a fixed number of positions for each window, or convolutions."""
    downsample: int = Field(default=4, ge=1, le=64)
    """Encoder positions that become one audio position."""
    hidden_size: int | None = Field(default=None, ge=1, le=65_536)
    """Width inside; null takes the language model's, or the encoder's for a perceiver."""
    latents: int = Field(default=8, ge=1, le=1024)
    """Outputs of one window of the perceiver."""
    depth: int = Field(default=2, ge=1, le=64)
    """Layers of the perceiver."""
    heads: Heads | None = None
    """Attention heads of the perceiver; null takes as many as make them about 64 wide."""


class CrossAttentionSettings(_Part):
    """The gated blocks of `fusion=cross_attention`."""

    layers: tuple[Annotated[int, Field(ge=0, le=10_000)], ...] | None = Field(default=None, min_length=1)
    """Language model layers that a block stands before; null takes the last of every four."""
    heads: Heads | None = None
    """Attention heads of a block; null takes those of the language model."""


class Composition(_Part):
    """Everything that decides a composed model."""

    encoder: str = Field(min_length=1)
    """Folder or hub name of a Whisper, wav2vec 2.0, HuBERT, WavLM or wav2vec 2.0 Conformer."""
    encoder_revision: str | None = None
    """Commit or tag of a hub encoder; null takes the newest."""
    language_model: str = Field(min_length=1)
    """Folder or hub name of a causal language model, or of a Qwen3-ASR, whose own is taken."""
    language_model_revision: str | None = None
    """Commit or tag of a hub language model; null takes the newest."""
    projector: ProjectorSettings = ProjectorSettings()
    fusion: Literal["prompt", "cross_attention"] = "prompt"
    """Audio in the prompt, or blocks before layers of the language model."""
    cross_attention: CrossAttentionSettings = CrossAttentionSettings()
    prompt: str = Field(default="<audio>Transcribe:", max_length=20_000)
    """What the language model reads: `<audio>` where the audio goes, `{language}` for the name of the language."""
    chat: bool = False
    """Whether the prompt is put into the tokenizer's chat template."""
    random_weights: bool = False
    """Take the configurations alone, to train from nothing."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of what is drawn anew."""

    def arguments(self) -> dict[str, Any]:
        """Arguments of `models.composed.build.compose`; what follows from the parts is left out."""
        values = dict(_leaves(self.model_dump(mode="json")))
        return {_ARGUMENTS.get(name, name): value for name, value in values.items() if value is not None}


_ARGUMENTS: Final = {
    "projector.kind": "projector_kind",
    "projector.downsample": "downsample",
    "projector.hidden_size": "projector_hidden_size",
    "projector.latents": "perceiver_latents",
    "projector.depth": "perceiver_depth",
    "projector.heads": "projector_heads",
    "cross_attention.layers": "cross_attention_layers",
    "cross_attention.heads": "cross_attention_heads",
}
_PERCEIVER: Final = ("projector.latents", "projector.depth", "projector.heads")
_BLOCKS: Final = ("cross_attention.layers", "cross_attention.heads")


def load_composition(words: Sequence[str]) -> Composition:
    """Read what words, and the file that `config=FILE` names, ask for.

    Raises:
        ConfigError: A word or the file is wrong; all problems are listed at once.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    for name, value in _pairs(words, problems):
        if name not in _settings():
            problems.append(f"{name}: no such setting{suggest(name, _settings())} Known: {', '.join(_settings())}")
        else:
            values[name] = value
    found = None
    try:
        # JSON mode and strict, as the settings of a run: a list may become a tuple, but `true` is not 1.
        found = Composition.model_validate_json(json.dumps(_tree(values)), strict=True)
    except ValidationError as error:
        for place in dict.fromkeys(_place(item["loc"]) for item in error.errors()):
            said = f"{values[place]!r} is not allowed" if place in values else "required, but nothing sets it"
            problems.append(f"{place}: {said}; allowed: {allowed(_settings()[place])}")
    if found is not None:
        problems += _without_effect(found, values)
    if found is None or problems:
        heading = f"{counted(len(problems), 'problem')} in what is to be composed:"
        raise ConfigError(problem_list(heading, problems))
    return found


def _pairs(words: Sequence[str], problems: list[str]) -> Iterator[tuple[str, Any]]:
    """Settings and values: those of the file, then those of the words."""
    told: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            problems.append(f"{word!r} is not of the form setting=value or config=file.yaml")
        elif name in told:
            problems.append(f"{name} is given twice; keep one of them")
        else:
            told[name] = text
    try:
        if (file := told.pop("config", None)) is not None:
            tree = read_yaml(Path(file))
            if not isinstance(tree, dict):
                problems.append(f"{file}: settings are a mapping (name: value), and this is {type(tree).__name__}")
            else:
                yield from _leaves(tree)
        for name, text in told.items():
            yield name, _value(name, text)
    except ConfigError as error:
        problems.append(str(error))


def _value(name: str, text: str) -> Any:
    setting = _settings().get(name)
    kinds = [] if setting is None else alternatives(setting.annotation)
    if type(None) in kinds and text in {"", "~", "null"}:
        return None
    if all(kind in {str, type(None)} or is_text_choice(kind) for kind in kinds):
        return text
    return parse_yaml(f"[{text}]" if name == "cross_attention.layers" and text[:1] != "[" else text, where=name)


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{name}", child) for name, child in value.items())
        else:
            yield str(key), value


def _tree(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in values.items():
        part, dot, setting = name.partition(".")
        if dot:
            tree.setdefault(part, {})[setting] = value
        else:
            tree[name] = value
    return tree


def _place(location: Sequence[Any]) -> str:
    """The setting that an error of pydantic is about."""
    names = [str(part) for part in location]
    return next(name for name in (".".join(names[:2]), names[0]) if name in _settings())


def _without_effect(found: Composition, values: Mapping[str, Any]) -> list[str]:
    rows = (
        (found.projector.kind != "perceiver", f"projector.kind is {found.projector.kind}", _PERCEIVER),
        (found.fusion == "prompt", "fusion is prompt", _BLOCKS),
    )
    return [
        f"{name} cannot take effect, because {because}. Leave one of them out"
        for idle, because, names in rows
        if idle
        for name in names
        if values.get(name) is not None
    ]


def _settings() -> dict[str, FieldInfo]:
    """Every setting by the name it has in a word."""
    found: dict[str, FieldInfo] = {}
    for name, setting in Composition.model_fields.items():
        kind = setting.annotation
        if isinstance(kind, type) and issubclass(kind, _Part):
            found |= {f"{name}.{inner}": value for inner, value in kind.model_fields.items()}
        else:
            found[name] = setting
    return found
