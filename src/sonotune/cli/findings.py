"""Which findings a person reads at the end of a command, and what they say of the clips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sonotune.types import Finding

_SHOWN = 10


def clips_left_out(findings: Iterable[Finding]) -> int:
    """How many clips were not learned from or not used at all; a finding that came up twice counts once."""
    return sum(len(finding.clip_ids) or 1 for finding in dict.fromkeys(findings) if removed_clips(finding))


def worth_telling(findings: Iterable[Finding]) -> list[Finding]:
    """Errors and warnings of a run beside those that left clips out, each once."""
    told = (finding for finding in findings if finding.severity != "note" and not removed_clips(finding))
    return list(dict.fromkeys(told))


def warning_lines(findings: Sequence[Finding], place: str) -> list[str]:
    """The first findings, a line each, and where the rest is."""
    messages = [finding.message for finding in findings]
    lines = [f"warning  {message}" for message in messages[:_SHOWN]]
    if len(messages) > _SHOWN:
        lines.append(f"warning  and {len(messages) - _SHOWN} more; {place} has all of them")
    return lines


def removed_clips(finding: Finding) -> bool:
    """Whether clips are missing because of it: settings left them out (`data.`), or they could not be used.

    A leak removes nothing, and a clip that evaluation could not hear is scored as wrong.
    """
    kind = finding.check.partition(".")[0]
    return kind == "data" or (finding.severity == "error" and kind in ("audio", "text", "label"))
