"""How numbers are written for people: counts, lengths of audio and sizes of memory, everywhere alike."""

from __future__ import annotations


def counted(count: int, thing: str, things: str | None = None) -> str:
    """A number of things, such as `1 clip` and `2 near copies`.

    Args:
        count: How many.
        thing: What one is called.
        things: What several are called, where that is not `thing` with an s.
    """
    return f"{count} {thing if count == 1 else things or f'{thing}s'}"


def long_time(seconds: float) -> str:
    """A length of audio or of work: in seconds below a minute, in minutes below an hour, else in hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.2f} h"


def memory_size(num_bytes: float) -> str:
    """A size in memory or on disk, in the binary unit that fits: KiB below a MiB, MiB below a GiB, else GiB."""
    size = abs(num_bytes)
    if size >= 2**30:
        return f"{num_bytes / 2**30:.2f} GiB"
    return f"{num_bytes / 2**20:.1f} MiB" if size >= 2**20 else f"{num_bytes / 2**10:.1f} KiB"
