"""Corrections that listeners made, brought into a new revision of a manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sonotune.audit.verdict import REASONS_COLUMN, VERDICT_COLUMN
from sonotune.data.lines import show
from sonotune.errors import ManifestError
from sonotune.json_files import OBJECT, parse_json
from sonotune.listening.choices import CorrectionLine
from sonotune.types import Clip, Finding

BY: Final = "corrected_by"
AT: Final = "corrected_at"
BEFORE: Final = "text_before"
EARLIER: Final = "earlier_corrections"
"""Columns of a corrected clip: who, when, the text before, and the same of corrections before the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """A corpus with its corrections.

    Attributes:
        clips: All clips, in their order.
        changed: Ids of those that have a new text.
        unchanged: Corrections that the manifest already has.
        findings: Corrections that could not be made, and what they took with them.
    """

    clips: tuple[Clip, ...]
    changed: tuple[str, ...]
    unchanged: int
    findings: tuple[Finding, ...]


def correct(clips: Sequence[Clip], corrections: Mapping[str, CorrectionLine]) -> Corrected:
    """Give clips their corrected transcripts.

    A correction is made only where the transcript still is what its listener saw. Words with times and the verdict of a
    filter belong to the old text, and are left out.

    Args:
        clips: Of the manifest.
        corrections: Clip id -> the correction that counts.

    Raises:
        ManifestError: None of the corrections can be made.
    """
    made: list[Clip] = []
    changed: list[str] = []
    others: list[str] = []
    timed: list[str] = []
    judged: list[str] = []
    unchanged = 0
    for clip in clips:
        line = corrections.get(clip.id)
        if line is None or clip.text == line["text"]:
            unchanged += line is not None
            made.append(clip)
        elif clip.text != line["was"]:
            others.append(clip.id)
            made.append(clip)
        else:
            changed.append(clip.id)
            timed += [clip.id] if clip.words else []
            judged += [clip.id] if VERDICT_COLUMN in clip.extra else []
            made.append(replace(clip, text=line["text"], words=(), extra=_provenance(clip, line)))
    missing = sorted(corrections.keys() - {clip.id for clip in clips})
    if not changed and not unchanged:
        raise ManifestError(
            f"none of {len(corrections)} corrections can be made: {len(missing)} are of clips that the manifest lacks, "
            f"and {len(others)} of clips whose text is not the one that was corrected. Name the manifest that was "
            "listened to."
        )
    findings = [
        _finding("correct.other_text", others, "have another text than the one that was corrected, and keep it"),
        _finding("correct.unknown_clip", missing, "that were corrected are not in the manifest"),
        _finding("correct.words", timed, "have a new text, and the times of the old words are left out"),
        _finding("correct.verdict", judged, "have a new text, and what a filter said of the old one is left out"),
    ]
    return Corrected(
        clips=tuple(made),
        changed=tuple(changed),
        unchanged=unchanged,
        findings=tuple(one for one in findings if one is not None),
    )


def _provenance(clip: Clip, line: CorrectionLine) -> dict[str, str]:
    extra = {name: value for name, value in clip.extra.items() if name not in (VERDICT_COLUMN, REASONS_COLUMN)}
    if BY in extra:
        earlier = _earlier(extra.get(EARLIER), clip.id)
        extra[EARLIER] = json.dumps(
            [*earlier, {name: extra.get(name) for name in (BY, AT, BEFORE)}], ensure_ascii=False
        )
    return {**extra, BY: line["listener"], AT: line["at"], BEFORE: clip.text or ""}


def _earlier(value: str | None, clip: str) -> list[object]:
    if value is None:
        return []
    do = f"Mend the column {EARLIER!r} of the clip, or remove it."
    body = parse_json(f'{{"all": {value}}}'.encode(), OBJECT, where=f"clip {show(clip)}", error=ManifestError, do=do)
    return body["all"] if isinstance(body["all"], list) else [body["all"]]


def _finding(check: str, clips: Sequence[str], what: str) -> Finding | None:
    if not clips:
        return None
    return Finding(
        check=check,
        severity="warning" if check in ("correct.other_text", "correct.unknown_clip") else "note",
        message=f"{len(clips)} clips {what}: {', '.join(map(show, clips[:3]))}{' ...' if len(clips) > 3 else ''}.",
        clip_ids=tuple(clips),
        measured=float(len(clips)),
        unit="clips",
    )
