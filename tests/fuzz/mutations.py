"""Ways to damage bytes, text, JSON and whole folders. Every draw is from the generator that is given."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from harness import Files, Odd

INTEGERS: Final = (
    *(0, 1, 2, 3, 4, 7, 8, 9, 16, 64, 255, 256, 1000, 32767, 32768, 65535, 65536, 10**6, 10**7, 10**9),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 10**30, 10**100, 10**400),
    *(-1, -2, -7, -(2**31), -(2**63), -(2**63) - 1, -(10**30)),
)
FLOATS: Final = (
    "0.0",
    "-0.0",
    "0.5",
    "1.5",
    "-0.1",
    "1e-9",
    "1e-320",
    "1e9",
    "1e99",
    "1e101",
    "1e308",
    "1e400",
    "-1e400",
)
CONSTANTS: Final = ("NaN", "Infinity", "-Infinity", "null", "true", "false", '""', "[]", "{}", "[[]]", "[null]", "[{}]")
STRINGS: Final = (
    *(
        "",
        " ",
        "\t",
        "\n",
        "\0",
        "\x1b[31m",
        "a\0b",
        "\ufeff",
        "\ud800",
        "x\udfff",
        "\u202e",
        "\u2028",
        "e\u0301",
        "İ",
        "ß",
    ),
    *(
        "שלום",
        "😀",
        "nan",
        "inf",
        "-1",
        "0",
        "1",
        "1e400",
        "true",
        "null",
        "None",
        "auto",
        "none",
        "all",
        "lora",
        "whisper",
    ),
    *(
        "..",
        ".",
        "/",
        "~",
        "~nobody/x",
        "../../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "/proc/self/mem",
        "file:///x",
    ),
    *(
        "assets:",
        "assets:whisper-nano",
        "assets:../x",
        "assets:nothing",
        "a/b",
        "http://x/y",
        "a\\b",
        "%s",
        "{}",
        "{x}",
        "$(x)",
    ),
    *(
        "<script>",
        "a|b",
        "a,b",
        'a"b',
        "a'b",
        "-",
        "--help",
        "=",
        "a=b",
        "(a+)+$",
        "(",
        "[",
        "*",
        ".*",
        "(a|a)*b",
        "\\",
    ),
    *("encoder", "decoder", "encoder.layers[-1:]", "encoder.layers[:99999999999]", "head", "float16", "torch.float32"),
)
LENGTHS: Final = (300, 1001, 5000, 70_000, 200_000, 1_100_000)


# --- bytes ---------------------------------------------------------------------------------------


def position(rng: random.Random, size: int) -> int:
    """A place in bytes; headers more often than the rest."""
    return rng.randrange(min(size, rng.choice((16, 64, 256)))) if rng.random() < 0.6 else rng.randrange(size)


def damage_bytes(rng: random.Random, data: bytes, tokens: Sequence[bytes] = ()) -> bytes:
    """One to six small changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if not data:
            return rng.randbytes(rng.randrange(1, 64))
        data = rng.choice(_BYTES)(rng, data) if not tokens or rng.random() < 0.7 else _put_token(rng, data, tokens)
    return data


def _put_token(rng: random.Random, data: bytes, tokens: Sequence[bytes]) -> bytes:
    at, token = position(rng, len(data)), rng.choice(tokens)
    return data[:at] + token + data[at + rng.choice((0, len(token))) :]


def _flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[position(rng, len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _number(rng: random.Random, data: bytes) -> bytes:
    form = rng.choice(("B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(form)
    at = position(rng, len(data))
    value = rng.choice(INTEGERS) % (1 << 8 * size)
    return data[:at] + struct.pack(form, value) + data[at + size :]


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: position(rng, len(data))]


def _drop(rng: random.Random, data: bytes) -> bytes:
    at = position(rng, len(data))
    return data[:at] + data[at + rng.choice((1, 2, 4, 16, 100, 1000)) :]


def _again(rng: random.Random, data: bytes) -> bytes:
    at = position(rng, len(data))
    piece = data[at : at + rng.choice((1, 4, 16, 100, 1000))]
    return data[:at] + piece * rng.choice((1, 2, 50)) + data[at:]


def _insert(rng: random.Random, data: bytes) -> bytes:
    at, count = position(rng, len(data)), rng.choice((1, 2, 4, 16, 100, 1000))
    piece = rng.choice((rng.randbytes(count), bytes(count), b"\xff" * count))
    return data[:at] + piece + data[at + rng.choice((0, count)) :]


def _swap(rng: random.Random, data: bytes) -> bytes:
    first, second = sorted((position(rng, len(data)), position(rng, len(data))))
    count = min(rng.choice((1, 4, 16, 200)), second - first)
    return (
        data[:first]
        + data[second : second + count]
        + data[first + count : second]
        + data[first : first + count]
        + data[second + count :]
    )


def _append(rng: random.Random, data: bytes) -> bytes:
    return data + rng.choice((rng.randbytes(rng.randrange(1, 300)), bytes(rng.choice((1, 128, 4096))), data))


_BYTES: Final = (_flip, _flip, _number, _number, _cut, _drop, _again, _insert, _swap, _append)


# --- JSON ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Raw:
    """Text that stands in JSON as it is, which need not be JSON."""

    text: str


class Pairs(list[tuple[Any, Any]]):
    """An object: keys and values in order; a key may stand twice."""


def parse(text: str) -> Any:
    """JSON with its objects as `Pairs`."""
    return json.loads(text, object_pairs_hook=Pairs)


def dump(value: Any) -> str:
    """JSON of a tree, with what JSON does not allow where the tree has it."""
    match value:
        case Raw():
            return value.text
        case Pairs():
            return "{" + ", ".join(f"{dump(key)}: {dump(child)}" for key, child in value) + "}"
        case list():
            return "[" + ", ".join(map(dump, value)) + "]"
        case _:
            return json.dumps(value)


def _copy(value: Any) -> Any:
    match value:
        case Pairs():
            return Pairs((key, _copy(child)) for key, child in value)
        case list():
            return [_copy(child) for child in value]
        case _:
            return value


def _slots(value: Any) -> list[tuple[list[Any], int]]:
    """Every place below a value: the list that holds it, and where."""
    found: list[tuple[list[Any], int]] = []
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            for index, child in enumerate(part):
                found.append((part, index))
                waiting.append(child[1] if isinstance(part, Pairs) else child)
    return found


def _get(slot: tuple[list[Any], int]) -> Any:
    holder, index = slot
    return holder[index][1] if isinstance(holder, Pairs) else holder[index]


def _set(slot: tuple[list[Any], int], value: Any) -> None:
    holder, index = slot
    holder[index] = (holder[index][0], value) if isinstance(holder, Pairs) else value


def value_of_any_kind(rng: random.Random) -> Any:
    """A value that few keys can have."""
    match rng.randrange(9):
        case 0 | 1:
            return rng.choice(INTEGERS) if rng.random() < 0.97 else Raw("9" * 5000)
        case 2:
            return Raw(rng.choice(FLOATS))
        case 3 | 4:
            return Raw(rng.choice(CONSTANTS))
        case 5 | 6 | 7:
            return rng.choice(STRINGS)
        case _:
            return rng.choice((_deep, _long, _wide))(rng)


def _deep(rng: random.Random) -> Raw:
    depth = rng.choice((10, 30, 63, 64, 65, 200, 990, 5000, 100_000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")))
    return Raw(opening * depth + "1" + closing * depth)


def _long(rng: random.Random) -> str:
    return rng.choice(("a", "\u05d0", "9", " ", "a ", "/", "[", "😀")) * rng.choice(LENGTHS)


def _wide(rng: random.Random) -> Any:
    count = rng.choice((100, 3000))
    return rng.choice(
        ([rng.choice(STRINGS)] * count, Pairs((f"k{i}", i) for i in range(count)), [rng.choice(INTEGERS)] * count)
    )


def _tweak(rng: random.Random, value: Any) -> Any:
    """Something near a value, so that the first check lets it through."""
    try:
        return _near(rng, value)
    except (ValueError, OverflowError):  # a number that has no such neighbour
        return value_of_any_kind(rng)


def _near(rng: random.Random, value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int():
            return rng.choice(
                (value + 1, value - 1, -value, value * 2, value * 1000, value // 2, float(value), str(value))
            )
        case float():
            return rng.choice((-value, value * 1e6, value * 1e-9, value + 1, int(value), str(value), Raw("NaN")))
        case str():
            return rng.choice((value.upper(), value + "x", value[:-1], value * 50, [value], f" {value} ", value[::-1]))
        case Pairs():
            return rng.choice(([child for _, child in value], [list(pair) for pair in value], Pairs(value[::-1])))
        case list():
            return rng.choice(
                (value[::-1], value * 2, value[:1], value[1:], Pairs((f"{i}", one) for i, one in enumerate(value)))
            )
        case _:
            return value_of_any_kind(rng)


def damage_json(rng: random.Random, value: Any) -> Any:
    """A tree with one to four changes; the one that is given stays as it is."""
    value = _copy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        slots = _slots(value)
        if not slots or rng.random() < 0.01:
            value = value_of_any_kind(rng)
            continue
        _change_slot(rng, slots)
    return value


def _change_slot(rng: random.Random, slots: list[tuple[list[Any], int]]) -> None:
    slot = rng.choice(slots)
    holder, index = slot
    match rng.randrange(13):
        case 0 | 1 | 2 | 3:
            _set(slot, value_of_any_kind(rng))
        case 4 | 5 | 6:
            _set(slot, _tweak(rng, _get(slot)))
        case 7:
            del holder[index]
        case 8:
            holder.insert(rng.randrange(len(holder) + 1), holder[index])  # of an object: the key stands twice
        case 9:
            other = rng.choice(slots)
            first, second = _copy(_get(slot)), _copy(_get(other))
            _set(slot, second)
            _set(other, first)
        case 10:
            _set(slot, _copy(_get(rng.choice(slots))))
        case 11:
            _set(slot, [_get(slot)] if rng.random() < 0.5 else Pairs([(rng.choice(STRINGS), _get(slot))]))
        case _:
            if isinstance(holder, Pairs):
                key = rng.choice((rng.choice(STRINGS), str(holder[index][0]) + "_", rng.choice(holder)[0]))
                holder[index] = (key, holder[index][1])
            else:
                holder.append(value_of_any_kind(rng))


def damage_json_file(rng: random.Random, data: bytes) -> bytes:
    """The bytes of a JSON file, damaged as a tree, and now and then as bytes."""
    text = dump(damage_json(rng, parse(data.decode())))
    return _as_file(rng, text)


def damage_json_lines(rng: random.Random, data: bytes) -> bytes:
    """The bytes of a file of JSON lines: some lines damaged, twice there, gone or torn."""
    lines = data.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not lines:
            break
        at = rng.randrange(len(lines))
        match rng.randrange(9):
            case 0:
                lines.insert(
                    at, rng.choice(("", "   ", "[]", "1", '"x"', "{}", "null", "{", "\ufeff", "\0", "x" * 1_100_000))
                )
            case 1:
                lines.insert(at, lines[at])
            case 2:
                del lines[at]
            case 3:
                lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
            case _:
                try:
                    lines[at] = dump(damage_json(rng, parse(lines[at])))
                except (ValueError, RecursionError):  # damaged before
                    lines[at] = lines[at][::-1]
    text = rng.choice(("\n", "\n", "\n", "\r\n", "\r", "\n\n", " \n")).join(lines) + rng.choice(("\n", "\n", ""))
    return _as_file(rng, text)


def _as_file(rng: random.Random, text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    match rng.randrange(40):
        case 0:
            return damage_bytes(rng, data)
        case 1:
            return b"\xef\xbb\xbf" + data
        case 2:
            return text.encode(
                rng.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "cp1255")), "replace"
            )
        case 3:
            return data + rng.choice((b"\0", b"}", b"x", b"\n\n[]", data))
        case _:
            return data


# --- text ----------------------------------------------------------------------------------------


def damage_text(rng: random.Random, data: bytes, tokens: Sequence[str]) -> bytes:
    """The bytes of a text file with words of its grammar put where they do not belong."""
    text = data.decode()
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        at, end = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
        match rng.randrange(8):
            case 0 | 1 | 2:
                text = text[:at] + rng.choice(tokens) + text[at:]
            case 3:
                text = text[:at] + rng.choice(tokens) + text[min(end, at + 8) :]
            case 4:
                text = text[:at] + text[min(end, at + rng.choice((1, 5, 50))) :]
            case 5:
                lines = text.split("\n")
                first = rng.randrange(len(lines))
                match rng.randrange(4):
                    case 0:
                        lines.insert(first, rng.choice(lines))
                    case 1:
                        del lines[first]
                    case 2:
                        lines[first] = rng.choice(STRINGS)
                    case _:
                        rng.shuffle(lines)
                text = "\n".join(lines)
            case 6:
                text = text[:at] + rng.choice(STRINGS) + text[at:]
            case _:
                token = rng.choice(tokens) or " "
                text = text[:at] + token * min(rng.choice((20, 500, 20_000)), 1_500_000 // len(token)) + text[at:]
    if rng.random() < 0.05:
        text = text.replace("\n", rng.choice(("\r\n", "\r", "\u2028", "\n\n", "\0")))
    return _as_file(rng, text)


# --- folders -------------------------------------------------------------------------------------

Damage = Callable[[random.Random, bytes], bytes]


def damage_folder(rng: random.Random, files: Files, how: Mapping[str, Damage], *, also: int = 8) -> Files:
    """One file of a case, and now and then more, damaged as its kind is; seldom there is no file in its place.

    Args:
        rng: Draws.
        files: The case.
        how: Ending of a name -> how such a file is damaged. Others are left alone. Earlier entries go first, and are
            drawn as often as they are listed.
        also: One time in so many, another file is damaged too.
    """
    changed = dict(files)
    able = [name for name in files for end in how if name.endswith(end)]
    while able:
        name = rng.choice(able)
        damage = next(damage for end, damage in how.items() if name.endswith(end))
        content = changed.get(name, b"")
        if rng.random() < 0.02:
            changed[name] = rng.choice((*Odd, b"", b"\0" * 100, rng.randbytes(300)))
            if rng.random() < 0.2:
                del changed[name]
        elif isinstance(content, bytes):
            try:
                changed[name] = damage(rng, content)
            except (ValueError, RecursionError):  # damaged before, so that it cannot be taken apart any more
                changed[name] = damage_bytes(rng, content)
        if rng.randrange(also):
            break
    return changed
