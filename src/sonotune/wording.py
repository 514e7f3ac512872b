"""How numbers are written for people: counts, lengths of audio and sizes of memory, everywhere alike."""

from __future__ import annotations


def counted(count: int, thing: str, things: str | None = None) -> str:
    """A number of things, such as `1 clip` and `2 near copies`.

    Args:
        count: How many.
        thing: What one is called.
        things: What several are called, where that is not `thing` with an s.
    """
    return f"{count} {thing if count == 1 else plural(thing, things)}"


def plural(thing: str, things: str | None = None) -> str:
    """What several are called; see `counted`."""
    return things or f"{thing}s"


def long_time(seconds: float) -> str:
    """A length of audio or of work: in seconds below a minute, in minutes below an hour, else in hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.2f} h"


def memory_size(num_bytes: float) -> str:
    """A size in memory or on disk, in the largest binary unit of which it has one: GiB, as torch and cards count."""
    for unit, digits, bytes_of in (("GiB", 2, 2**30), ("MiB", 1, 2**20), ("KiB", 1, 2**10)):
        if num_bytes >= bytes_of:
            return f"{num_bytes / bytes_of:.{digits}f} {unit}"
    return f"{num_bytes:.0f} B"
