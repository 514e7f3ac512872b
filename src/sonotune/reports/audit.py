"""The page of an audit: the verdict and what it rests on, and the worst clips to listen to, in one file without a net.

It is made of what the audit wrote, `alignment_report.json` and `clips.jsonl`, and of the audio of the clips that it
shows; no model is needed. The same files give the same bytes. All text is escaped: transcripts are data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from sonotune.audit.gate import GateSettings
from sonotune.audit.record import CLIPS_FILE, AuditReport, StratumReport, read_report
from sonotune.audit.verdict import SUFFIX
from sonotune.data import text as text_module
from sonotune.errors import ConfigError, ManifestError, TextError, shortened
from sonotune.reports.audit_clips import (
    ClipLine,
    ClipLines,
    clip_facts,
    clip_views,
    read_clips,
    shortened_text,
    show_statistic,
    sound_of,
    statistic_title,
)
from sonotune.reports.canvas import elide
from sonotune.reports.page import render_page
from sonotune.reports.record import flatten, show_count, show_percent, show_seconds
from sonotune.runs.files import atomic_write_text
from sonotune.wording import counted

PAGE_FILE: Final = "report.html"
MAX_PAGE_BYTES: Final = 6 * 2**20
"""Of the page, so that it can be mailed; fewer clips are shown where they would not fit."""

_BESIDE_CLIPS: Final = 2 * 2**20  # of the page: tables, and clips that could not be aligned
_UNALIGNED_SOUNDS: Final = 8  # of those, as many have their sound
_BYTES_A_WORD: Final = 240  # markup of a word that is drawn or compared
_SHORT: Final = 300  # characters of a transcript in a list
_SEVERITIES: Final = {"PROCEED": "better", "CAUTION": "note", "SAMPLE_MORE": "note", "STOP": "worse"}
_SENTENCES: Final = {
    "PROCEED": "The transcripts are good enough to train on.",
    "CAUTION": "The sample does not decide. Listen to the worst clips before you train on them.",
    "SAMPLE_MORE": "The sample does not decide yet.",
    "STOP": "Too many transcripts do not belong to their audio. Mend or leave out the bad clips before you train.",
}
CODE_MEANINGS: Final[Mapping[str, str]] = {
    "unaligned": "The transcript could not be placed in time.",
    "local_mismatch": "At one place the transcript is much less likely than what the model hears there.",
    "mismatch": "The transcript is much less likely than what the model hears, over the whole clip.",
    "improbable": "The model finds the transcript improbable over the whole clip.",
    "locally_improbable": "The model finds the transcript improbable at one place.",
    "low_confidence": "The model gives the characters of the transcript a low probability on average.",
    "improbable_tokens": "Many characters of the transcript have a low probability.",
    "low_coverage": "Little of the speech lies under a word of the transcript.",
    "untranscribed_speech": "Somebody speaks where the transcript has no words.",
    "speaking_rate": "The transcript has far more or far fewer characters than are spoken in that time.",
    "recognised_otherwise": "The model writes another text than the transcript.",
    "unknown_characters": "The model has no symbol for many characters of the transcript.",
    "clipped": "The recording is clipped; this alone flags no clip.",
    "noisy": "The recording is noisy; this alone flags no clip.",
    "narrower_band": "The recording has a narrower band than its sampling rate allows; this alone flags no clip.",
    "nothing_recognised": "The model hears no word in the recording; this alone flags no clip.",
    "mostly_silent": "Most of the recording is silent; this alone flags no clip.",
    "repeated_audio": "Another clip of the sample has the same recording; this alone flags no clip.",
    "repeated_text": "Another clip of the sample has the same long transcript; this alone flags no clip.",
    "other_language": "The model detects another language than the clip names; this alone flags no clip.",
    "other_script": "The transcript is in another script than most of its language; this alone flags no clip.",
}
"""What a code of a reason or of a note says, in a sentence."""


def write_audit_page(folder: Path, *, clips: int = 30) -> Path:
    """Make `report.html` in the folder of an audit.

    Args:
        folder: With `alignment_report.json` and `clips.jsonl`.
        clips: The worst clips that are shown, at most; fewer where the page would grow beyond `MAX_PAGE_BYTES`.

    Returns:
        The page.

    Raises:
        ManifestError: A file of the audit is missing or damaged, or the two are not of the same audit.
        ResourceError: The disk is full.
        RunDirectoryError: The folder cannot be written.
    """
    report = read_report(folder)
    lines = read_clips(folder, worst=clips)
    sampled, found = sum(stratum.sampled for stratum in report.strata), lines.aligned + lines.failed
    if sampled != found:
        raise ManifestError(
            f"{folder / CLIPS_FILE} has {counted(found, 'clip')}, and the report beside it is about {sampled}. An "
            "audit writes both: something else changed one of them. Audit again with `sonotune audit`."
        )
    path = folder / PAGE_FILE
    atomic_write_text(path, build_audit_html(report, lines, name=folder.resolve().name.removesuffix(SUFFIX)))
    return path


def build_audit_html(report: AuditReport, lines: ClipLines, *, name: str) -> str:
    """Make the page.

    Args:
        report: Of the audit.
        lines: Its clips, of which the audio is read.
        name: Of the corpus.

    Returns:
        A whole HTML document with inline style, figures and sound; no script, no link to the network.
    """
    shown = _within_budget(report, lines.worst)
    sampled = sum(stratum.sampled for stratum in report.strata)
    population = sum(stratum.population for stratum in report.strata)
    return render_page(
        "audit.html",
        filters={"percent": show_percent, "count": show_count, "sentence": _sentence, "decided": _outcome},
        report=report,
        name=name,
        outcome=_outcome(report.decision),
        told=_SENTENCES[report.decision],
        what="bad" if report.correction == "applied" else "flagged",
        scale=_scale(report),
        by_point=_gate(report.settings).get("rule") == "point",
        sampled=sampled,
        population=population,
        tiles=_tiles(report, sampled, population),
        detector=_detector_rows(report),
        thresholds=[
            (statistic_title(statistic), show_statistic(statistic, value))
            for statistic, value in report.calibration.thresholds.items()
        ],
        groups=[(by, rows) for by, rows in (("stratum", report.strata), ("domain", report.domains)) if _tells(rows)],
        codes=[(code, count, CODE_MEANINGS.get(code, "")) for code, count in report.flags.items()],
        coverage=sorted(report.coverage_percentiles.items(), key=_percentile),
        clips=shown,
        aligned=lines.aligned,
        dropped=len(lines.worst) - len(shown),
        unaligned=[_unaligned(line, sound=place < _UNALIGNED_SOUNDS) for place, line in enumerate(lines.unaligned)],
        failed=lines.failed,
        settings=flatten(report.settings),
        facts=_facts(report),
        versions=report.versions,
    )


def _within_budget(report: AuditReport, lines: Sequence[ClipLine]) -> list[dict[str, Any]]:
    """Views of as many clips as the page has room for."""
    views: list[dict[str, Any]] = []
    room = MAX_PAGE_BYTES - _BESIDE_CLIPS
    try:
        scoring = text_module.get(report.normalizer.get("name", "basic")).scoring
    except (ConfigError, TextError):  # of a plug-in that this machine lacks
        scoring = text_module.get("basic").scoring
    for view in clip_views(lines, scoring=scoring):
        room -= _bytes_of(view)
        if room < 0:
            break
        views.append(view)
    return views


def _bytes_of(view: Mapping[str, Any]) -> int:
    """At most so many bytes a clip takes in the page; five for a character that is escaped."""
    texts = [view["id"], view["text"], view["silence"], *view["notes"]]
    compared = view["compared"]["words"] if view["compared"] else []
    texts += [text for word in compared for text in (word.reference, word.hypothesis)]
    texts += [word["text"] for word in view["wave"]["words"]]
    marked = len(compared) + len(view["wave"]["words"]) + len(view["reasons"]) + len(view["wave"]["ticks"])
    plain = len(view["sound"] or "") + len(view["wave"]["path"] or "") + 4_000
    return plain + _BYTES_A_WORD * marked + 5 * sum(len(text.encode("utf-8", "replace")) for text in texts)


# --- the first screen ----------------------------------------------------------------------------------------------


def _scale(report: AuditReport) -> dict[str, float]:
    """Places on the bar of the verdict, in per cent of its width, and what they are."""
    proceed, stop = _borders(report.settings)
    rate = report.rate
    end = min(1.0, max(2 * stop, 1.1 * rate.high))
    places = {"proceed": proceed, "stop": stop, "low": rate.low, "value": rate.value, "high": rate.high}
    at = {f"{key}_at": 100 * min(value / end, 1.0) for key, value in places.items()}
    return {**at, "proceed": proceed, "stop": stop, "end": end}


def _borders(settings: Mapping[str, Any]) -> tuple[float, float]:
    """Where the corpus passes and fails, as it was set; else the defaults of the gate."""
    known = _gate(settings)
    default = GateSettings()
    borders = (
        known.get("proceed_below", default.proceed_below),
        known.get("stop_above", default.stop_above),
    )
    if all(isinstance(border, int | float) for border in borders) and 0 < borders[0] <= borders[1] < 1:
        return borders
    return default.proceed_below, default.stop_above


def _gate(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the gate, wherever they stand."""
    found = [settings, *(settings.get(part) for part in ("audit", "gate"))]
    return {key: value for part in found if isinstance(part, Mapping) for key, value in part.items()}


def _tiles(report: AuditReport, sampled: int, population: int) -> list[dict[str, str]]:
    flagged = sum(stratum.flagged for stratum in report.strata)
    found = report.calibration
    tiles = [
        {
            "name": "Clips looked at",
            "value": show_count(sampled),
            "note": f"of {show_count(population)}, in {counted(report.look, 'look')}",
        },
        {"name": "Flagged", "value": show_count(flagged), "note": f"{show_percent(report.flagged_share)}, weighted"},
    ]
    for title, rate, of in (
        ("Bad clips that are found", found.sensitivity, "mean over corruptions"),
        ("Good clips that pass", found.specificity, "trusted clips"),
    ):
        if rate is None:
            tiles.append({"name": title, "value": "unknown", "note": "not measured"})
        else:
            note = f"{show_percent(rate.low)} to {show_percent(rate.high)}, {of}"
            tiles.append({"name": title, "value": show_percent(rate.value), "note": note})
    return tiles


def _detector_rows(report: AuditReport) -> list[dict[str, Any]]:
    """Sensitivity by corruption, their mean, and the specificity."""
    found = report.calibration
    rows = [{"name": f"found: {name}", "rate": rate} for name, rate in found.corruptions.items()]
    if found.sensitivity is not None:
        rows.append({"name": "sensitivity, the mean of these", "rate": found.sensitivity})
    if found.specificity is not None:
        rows.append({"name": "specificity: trusted clips that pass", "rate": found.specificity})
    return rows


def _tells(rows: Sequence[StratumReport]) -> bool:
    """Whether there is something to show; a single domain without a name is all clips."""
    return bool(rows) and not (len(rows) == 1 and rows[0].decision is None and rows[0].name == "none")


def _facts(report: AuditReport) -> list[tuple[str, str]]:
    """Model, normaliser and digests."""
    model = [(f"model: {name}", value) for name, value in report.model.items() if value]
    normalizer = [(f"normaliser: {name}", value) for name, value in report.normalizer.items()]
    asked = report.calibration.false_positive_rate
    thresholds = "fixed" if asked is None else f"calibrated to flag {show_percent(asked)} of good clips"
    return [
        *model,
        *normalizer,
        ("digest of the clips", report.data_digest),
        ("thresholds", thresholds),
        ("began", report.started),
        ("took", show_seconds(report.seconds)),
        ("schema of the report", str(report.schema)),
    ]


def _unaligned(line: ClipLine, *, sound: bool) -> dict[str, str | None]:
    text = shortened_text(line["text"] or "")
    return {
        "id": elide(line["id"], 200),
        "facts": clip_facts(line),
        "text": text if len(text) <= _SHORT else f"{text[:_SHORT]} […]",
        "check": line["check"],
        "problem": shortened(line["problem"]),
        "sound": sound_of(line) if sound else None,
    }


def _percentile(entry: tuple[str, float]) -> tuple[float, str]:
    try:
        return float(entry[0]), entry[0]
    except ValueError:
        return 101.0, entry[0]


def _sentence(text: str) -> str:
    """With a capital and a full stop."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _outcome(decision: str | None) -> str:
    """The class of a badge."""
    return _SEVERITIES.get(decision or "", "none")
