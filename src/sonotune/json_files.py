"""JSON that is read back: bounded in size and depth, and checked against a type before any of it is used.

A type is a pydantic `TypeAdapter` over what JSON has: typed dictionaries, dictionaries, lists, text and numbers. It
names the keys that are used; others may stand beside them, so that files of newer versions and of other tools can be
read. The value is returned as it stands in the file, in its order. Where a key stands twice, the last counts; `NaN` and
`Infinity`, which are no JSON, are read as null.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError

from sonotune.errors import SonotuneError

MAX_BYTES: Final = 256 * 2**20
"""Of a file that is read at once."""
MAX_LINE_BYTES: Final = 16 * 2**20
MAX_DEPTH: Final = 64
MAX_NUMBER: Final = 1e100
"""Numbers stay so far below the largest `float` that products of a few of them are finite."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Logged = Number | Literal["nan", "inf", "-inf"]
"""A number as `runs.to_plain` writes it."""
OBJECT: Final = TypeAdapter(dict[str, Any])

T = TypeVar("T")
_SHOWN = 3  # problems in a message
_WORDS = {
    "a valid dictionary": "an object",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid integer": "a whole number",
    "a valid ": "a ",
}


def read_json(
    path: Path, kind: TypeAdapter[T], *, error: type[SonotuneError], do: str, max_bytes: int = MAX_BYTES
) -> T:
    """Read a file.

    Args:
        path: The file.
        kind: What it must hold.
        error: Class of the error that is raised.
        do: What the person can do about a file that cannot be used; ends the message.
        max_bytes: A larger file is refused.

    Raises:
        SonotuneError: Of the class `error`: the file cannot be read, is no JSON, or holds something else.
    """
    try:
        with _opened(path, error, do) as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as fault:
        raise error(f"{path} cannot be read: {getattr(fault, 'strerror', None) or fault}. {do}") from fault
    if len(data) > max_bytes:
        raise error(f"{path} is larger than the {max_bytes:,} bytes that it may have. {do}")
    return parse_json(data, kind, where=str(path), error=error, do=do)


def read_json_lines(
    path: Path, kind: TypeAdapter[T], *, error: type[SonotuneError], do: str, whole: bool = False
) -> Iterator[T]:
    """Read a file of JSON lines, one at a time. Blank lines are passed over.

    Args:
        path: The file.
        kind: What every line must hold.
        error: Class of the error that is raised.
        do: What the person can do; ends the message.
        whole: Leave out a last line without its end, as a crash leaves one.

    Raises:
        SonotuneError: Of the class `error`, naming the line.
    """
    try:
        with _opened(path, error, do) as file:
            for number in itertools.count(1):
                line = file.readline(MAX_LINE_BYTES + 1)
                if not line or (whole and len(line) <= MAX_LINE_BYTES and not line.endswith(b"\n")):
                    return
                where = f"{path}:{number}"
                if len(line) > MAX_LINE_BYTES:
                    raise error(f"{where} is longer than the {MAX_LINE_BYTES:,} bytes that a line may have. {do}")
                if line.strip():
                    yield parse_json(line, kind, where=where, error=error, do=do)
    except (OSError, ValueError) as fault:
        raise error(f"{path} cannot be read: {getattr(fault, 'strerror', None) or fault}. {do}") from fault


def _opened(path: Path, error: type[SonotuneError], do: str) -> BinaryIO:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise error(f"{path} cannot be read: it is no file. {do}")
    return path.open("rb")


def parse_json(data: bytes, kind: TypeAdapter[T], *, where: str, error: type[SonotuneError], do: str) -> T:
    """Read JSON; `where` names its place. See `read_json`."""
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=lambda name: None)
    except RecursionError as fault:
        raise error(f"{where} is damaged: it is nested deeper than {MAX_DEPTH} levels. {do}") from fault
    except ValueError as fault:
        raise error(f"{where} is damaged: {fault}. {do}") from fault
    if problem := _out_of_bounds(value):
        raise error(f"{where} is damaged: {problem}. {do}")
    return check_json(value, kind, where=where, error=error, do=do)


def check_json(value: object, kind: TypeAdapter[T], *, where: str, error: type[SonotuneError], do: str) -> T:
    """Check a value that was read already. See `read_json`."""
    try:
        kind.validate_python(value, strict=True)
    except ValidationError as fault:
        found = fault.errors(include_url=False, include_context=False)
        told = [_problem(one["type"], ".".join(map(str, one["loc"])), one["input"], one["msg"]) for one in found]
        more = f"; and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        raise error(f"{where}: {'; '.join(told[:_SHOWN])}{more}. {do}") from fault
    return cast("T", value)  # as it was validated, which in strict mode changes nothing but the order


def _problem(kind: str, key: str, found: object, message: str) -> str:
    if kind == "missing":
        return f"{key} is missing"
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    shown = {list: "a list", dict: "an object", type(None): "null"}.get(type(found)) or repr(found)[:60]
    wanted = message.replace("Input should be", "and it must be").replace("Value error", "and")
    return f"{key or 'it'} is {shown}, {wanted}"


def _out_of_bounds(value: object) -> str | None:
    """What is wrong with a value whatever it should be; looked at level by level, for it may be deep."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for one in level:
            if isinstance(one, dict):
                below.extend(one.values())
            elif isinstance(one, list):
                below.extend(one)
            elif isinstance(one, int | float) and not -MAX_NUMBER < one < MAX_NUMBER:
                return f"a number is beyond {MAX_NUMBER:g}"
        if not below:
            return None
        level = below
    return f"it is nested deeper than {MAX_DEPTH} levels"
