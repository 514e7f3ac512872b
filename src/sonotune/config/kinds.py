"""Types of settings: what a word may hold, and what is allowed, in a reader's words."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python


def affects_result(setting: FieldInfo) -> bool:
    """Whether a setting can change the weights, scores or predictions of a run."""
    extra = setting.json_schema_extra
    return not (isinstance(extra, dict) and extra.get("affects_result") is False)


def in_digest(setting: FieldInfo, value: Any) -> bool:
    """Whether a value of a setting, as JSON has it, belongs to the digest of a run."""
    extra = setting.json_schema_extra
    later = isinstance(extra, dict) and extra.get("in_digest_at_default") is False
    return affects_result(setting) and not (later and value == to_jsonable_python(setting.default))


def alternatives(kind: Any) -> list[Any]:
    """The members of a union, without their bounds and validators."""
    while typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in {typing.Union, types.UnionType}:
        return [member for part in typing.get_args(kind) for member in alternatives(part)]
    return [kind]


def choices(kinds: Sequence[Any]) -> set[Any]:
    """Every literal value among the alternatives."""
    return {value for kind in kinds if typing.get_origin(kind) is Literal for value in typing.get_args(kind)}


def is_text_choice(kind: Any) -> bool:
    """Whether an alternative is a choice between words."""
    return typing.get_origin(kind) is Literal and all(isinstance(value, str) for value in typing.get_args(kind))


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
_BOUNDS = (("ge", "from"), ("gt", "above"), ("le", "to"), ("lt", "below"))


def allowed(setting: FieldInfo) -> str:
    """What a setting may hold."""
    return _in_words(setting.annotation, setting.metadata)


def _in_words(kind: Any, bounds: Sequence[Any] = ()) -> str:
    """A type as a reader of settings knows it."""
    parts = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if kind in _WORDS:
        limits = [f"{word} {getattr(bound, key)}" for key, word in _BOUNDS for bound in bounds if hasattr(bound, key)]
        return " ".join([_WORDS[kind], *limits])
    if kind is type(None):
        return "null"
    if origin is Annotated:
        extra = [bound for part in parts[1:] for bound in getattr(part, "metadata", [part])]
        return _in_words(parts[0], [*bounds, *extra])
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(_in_words(part, bounds) for part in parts)
    if origin is Literal:
        return ", ".join(str(value) for value in parts)
    if origin is tuple:
        return (
            f"a list of {_in_words(parts[0])}" if parts[-1] is ... else f"a list of {len(parts)}: {_in_words(parts[0])}"
        )
    if not parts:
        return f"a mapping with {', '.join(kind.model_fields)}"
    return f"a mapping of text to {_in_words(parts[1])}"
