"""YAML for settings: YAML 1.2 scalars, no tags, no aliases, bounded size and depth.

PyYAML follows YAML 1.1, where `no` is False (and Norwegian), `on`, `off` and `yes` are booleans (and spoken commands),
`010` is 8, `12:30` is 750 and `1e-4` is text. Here `true` and `false` are the booleans, numbers are decimal, and
everything else is text; `010` stays text, because a reader cannot know which number was meant.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from sonotune.errors import ConfigError
from sonotune.paths import exists, is_file

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_VALUES = 5_000

_BOOLEAN = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INTEGER = re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$")
_NUMBER = re.compile(
    r"^[-+]?(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+|(?:0|[1-9][0-9]*)(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
    r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)
_RESOLVERS: dict[Any, Any] = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars that refuses what settings never need."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._values = 0

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Count open brackets where they are scanned: the scanner looks far ahead of the nodes."""
        if self.flow_level >= MAX_DEPTH:
            mark = self.get_mark()
            raise yaml.YAMLError(
                f"line {mark.line + 1}, column {mark.column + 1}: nested more than {MAX_DEPTH} levels deep"
            )
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Build one node, counting, before anything below it is read."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.YAMLError(_at(event, "anchors (&) and aliases (*) are not allowed; write the value out"))
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(_at(event, f"the tag {event.tag!r} is not allowed; only plain values are"))
        self._depth += 1
        self._values += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(_at(event, f"nested more than {MAX_DEPTH} levels deep"))
        if self._values > MAX_VALUES:
            raise yaml.YAMLError(_at(event, f"more than {MAX_VALUES} values"))
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes exactly the text that the loader would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a repeated value out again."""
        return True


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {first: [*rules] for first, rules in _RESOLVERS.items()}
    _class.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOLEAN, list("tTfF"))
    _class.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def _at(event: Any, message: str) -> str:
    return f"line {event.start_mark.line + 1}, column {event.start_mark.column + 1}: {message}"


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.YAMLError(_at(key_node, f"the name {key!r} is not text; put it in quotes"))
        if key in found:
            raise yaml.YAMLError(_at(key_node, f"the name {key!r} stands twice"))
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    # Left to itself the emitter folds Unicode line breaks into spaces; in double quotes it escapes them.
    style = '"' if any(sign in text for sign in "\n\r\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def parse_yaml(text: str, *, where: str = "the text") -> Any:
    """Read one YAML document.

    Args:
        text: The document; empty text is None.
        where: What to call it in an error.

    Raises:
        ConfigError: Not YAML, or YAML that settings may not use; names the place.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{where} has {len(text)} characters; at most {MAX_BYTES} are allowed")
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigError(f"{where}, {place}not readable as YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{where}, character {error.position + 1}: {error.reason}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}, {error}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise ConfigError(f"{where}: {error}") from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file of at most one megabyte.

    Raises:
        ConfigError: Not a regular file, too large, not UTF-8, or not acceptable YAML; names file and line.
    """
    if not is_file(path):
        raise ConfigError(f"{path} is {'not a regular file' if exists(path) else 'not there'}")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} has more than {MAX_BYTES} bytes; settings are smaller than that")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8 text") from error
    return parse_yaml(text, where=str(path))


def write_yaml(value: Any) -> str:
    """Text that `parse_yaml` reads back as the same value; mappings keep their order."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text
