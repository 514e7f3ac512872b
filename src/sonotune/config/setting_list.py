"""The schema, seen as a flat list of settings with dotted names."""

from __future__ import annotations

import functools
import json
from typing import NamedTuple

import pydantic_core
from pydantic.fields import FieldInfo

from sonotune.config.kinds import affects_result, allowed
from sonotune.config.schema import RunConfig
from sonotune.config.section import Section


class Setting(NamedTuple):
    """One setting, described for people.

    Attributes:
        name: Dotted name.
        type: What is allowed, in words.
        default: The default as YAML, or `required`.
        doc: What it means.
    """

    name: str
    type: str
    default: str
    doc: str


@functools.cache
def settings() -> dict[str, FieldInfo]:
    """Dotted name -> field, in the order of the schema."""
    found: dict[str, FieldInfo] = {}
    for section, section_field in RunConfig.model_fields.items():
        kind = section_field.annotation
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            raise TypeError(f"RunConfig.{section} is no section")
        found |= {f"{section}.{name}": setting for name, setting in kind.model_fields.items()}
    return found


def describe_settings() -> list[Setting]:
    """Every setting in the order of the schema, for the generated reference page."""
    return [
        Setting(
            name,
            allowed(setting),
            "required" if setting.is_required() else _default(setting),
            (setting.description or "") + ("" if affects_result(setting) else " Not part of the config digest."),
        )
        for name, setting in settings().items()
    ]


def _default(setting: FieldInfo) -> str:
    """A setting's default, as YAML on one line."""
    return json.dumps(pydantic_core.to_jsonable_python(setting.default), ensure_ascii=False).strip('"')
