"""The report of a run: all a person wants to know about it, in one HTML file that opens offline and can be mailed.

It reads the run record, the events, the predictions and the plan of ranks, nothing else, so that any run can be
reported again at any time, on a machine without the model. The same inputs give the same bytes. All text is escaped:
transcripts are data.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sonotune.evaluation.compare import Comparison
from sonotune.metrics.retention import BROKE
from sonotune.metrics.scores import (
    WORSE,
    change_of,
    drawn_scores,
    in_percent,
    score_title,
    show_change,
    show_signed,
    show_value,
    shown_number,
    shown_unit,
)
from sonotune.metrics.slices import DURATION_EDGES_S
from sonotune.reports.classes import view_classes
from sonotune.reports.confidence import view_confidence
from sonotune.reports.events import scores_over_steps, series, sort_events
from sonotune.reports.figures import Estimate, Series, bars, curve, estimates
from sonotune.reports.page import render_page
from sonotune.reports.predictions import Rate, text_slices, worst_texts
from sonotune.reports.rank_heatmap import run_pictures
from sonotune.reports.retention import retention_rows, retention_verdict, scale_figure, scale_rows, scale_titles
from sonotune.reports.verdict import SPLITS, audit_verdict, command_line, dates, domain_rows, usage_lines, verdict
from sonotune.runs.record import task_of
from sonotune.types import RunRecord
from sonotune.wording import counted, memory_size

logger = logging.getLogger(__name__)

_SEVERITIES = ("error", "warning", "note")
_SHOWN_IDS = 8
_SHOWN_FINDINGS = 10
_DATA = {"train": "training", "eval": "development", "test": "test"}
_LEAST_REST = 0.01
_REST = "loading, scoring before and after, other"
_FIRST = (WORSE, BROKE, "export.parity", "model.context")  # what they say is of the result, not of single clips
_CURVES = (
    ("steps", "Scores over steps"),
    ("loss", "Loss"),
    ("learning_rate", "Learning rate"),
    ("throughput", "Throughput"),
)


def build_html(
    record: RunRecord,
    events: Iterable[Mapping[str, Any]] = (),
    predictions: Sequence[Mapping[str, Any]] = (),
    plan: Mapping[str, Any] | None = None,
    *,
    split: str | None = None,
    change: Comparison | None = None,
    place: str | None = None,
    browser: str | None = None,
) -> str:
    """Make the report.

    Args:
        record: The run record (`run.json`).
        events: Lines of `events.jsonl`. Read are those with `step` and `loss` (and, where present, `learning_rate` or
            `learning_rates`, `samples_per_s`), with `step` and `scores`, with a mapping `seconds` (phase -> seconds
            since the run began; the last one counts), and those of kind `adapter_entropy` and `activation_entropy`.
        predictions: Lines of one file of `predictions/`, as `runs.read_predictions` gives them.
        plan: What `ranks.json` holds, for the evidence that ranks follow and the budget of each group.
        split: Name of the file of predictions, `test`, `after` or `before`, which says whose clips they are of.
        change: Predictions before and after training, compared clip by clip; None where that cannot be done.
        place: The run directory as a command names it, for lines that use the run; None shows none.
        browser: File of the error browser beside the report; None where there is none.

    Returns:
        A whole HTML document with inline style and figures; no script, no link to the network.
    """
    from markupsafe import Markup  # noqa: PLC0415

    events = list(events)
    training, evaluations, phases = sort_events(events)
    phases = _with_rest(phases, record.seconds)
    edges_s = record.config.get("evaluation", {}).get("duration_edges_s") or DURATION_EDGES_S
    edges_s = [float(edge) for edge in edges_s]  # one that is infinite is kept as text
    multi_label = record.config.get("data", {}).get("multi_label")
    classes = view_classes(predictions, edges_s, multi_label=multi_label)
    names = _shown_scores(record, evaluations)
    figures = _figures(record, training, evaluations, phases, names)
    rate: Rate = "cer" if next(iter(names), None) == "cer" else "wer"
    worst, wrong = (classes["worst"], classes["wrong"]) if classes else worst_texts(predictions)
    changed, defaults = _settings(record)
    confidence = view_confidence(record)
    told = sorted(
        dict.fromkeys(record.findings),
        key=lambda finding: (finding.check not in _FIRST, _SEVERITIES.index(finding.severity)),
    )
    return render_page(
        "record.html",
        filters={
            "seconds": show_seconds,
            "bytes": memory_size,
            "score": show_value,
            "count": show_count,
            "percent": show_percent,
            "change": _show_end,
            "outcome": _outcome,
        },
        record=record,
        figures={name: Markup(svg) for name, svg in figures.items()},  # noqa: S704  (our own SVG, text escaped there)
        estimates=[
            (name, f"{score_title(name, score)} with 95 % intervals")
            for name, score in names.items()
            if name in figures
        ],
        curves=[(name, caption) for name, caption in _CURVES if name in figures],
        tiles=_tiles(record, names),
        scores=_score_rows(record),
        of_classes=task_of(record) == "classify",
        classes=classes,
        matrix=Markup(classes["matrix"] if classes else ""),  # noqa: S704  (as the figures)
        slices=classes["slices"] if classes else text_slices(predictions, edges_s, rate=rate),
        rate=rate,
        worst=worst,
        wrong=wrong,
        num_predictions=len(predictions),
        browser=browser,
        verdict=verdict(record, change),
        audit=audit_verdict(record),
        kept=retention_verdict(record),
        retention=retention_rows(record),
        scales={"titles": scale_titles(record), "rows": scale_rows(record), **record.adapter_scales},
        confidence={
            **confidence,
            "figures": [(caption, Markup(svg)) for caption, svg in confidence.get("figures", [])],  # noqa: S704  (same)
        }
        if confidence
        else {},
        scale_curve=Markup(scale_figure(record) or ""),  # noqa: S704  (as the figures)
        dates=dates(events),
        command=command_line(record),
        usage=usage_lines(record, place, task_of(record)),
        clips_of=SPLITS.get(split or "", ""),
        domains=domain_rows(change, next(iter(names), None)),
        data=[(split, of, _languages(record, of)) for split in _DATA if (of := record.data.get(split))],
        split_names=_DATA,
        worse=WORSE,
        findings=[finding for finding in told if finding.severity != "note"],
        notes=[finding for finding in told if finding.severity == "note"],
        shown_findings=_SHOWN_FINDINGS,
        shown_ids=_SHOWN_IDS,
        components=component_rows(record.model),
        model_facts=_model_facts(record.model),
        ranks=_ranks(record.ranks),
        pictures=[
            (picture, Markup(picture.page()))  # noqa: S704  (as the figures)
            for picture in run_pictures(record.ranks, events, plan)
        ],
        phases=_phase_rows(phases),
        environment=flatten(record.environment),
        changed=changed,
        defaults=defaults,
    )


def show_seconds(seconds: float) -> str:
    """A duration as people say it: `0.4 s`, `52 s`, `3 min 20 s`, `5 h 2 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def show_count(number: float) -> str:
    """A number with narrow spaces between its thousands."""
    return f"{number:,.0f}".replace(",", "\u202f")


def show_percent(share: float) -> str:
    """A share in per cent, with one digit behind the point."""
    return f"{100 * share:.1f} %"


def _show_end(difference: Mapping[str, Any], key: str) -> str:
    """A paired difference or an end of its interval, without its unit."""
    return show_signed(difference, difference[key])


def _outcome(difference: Mapping[str, Any]) -> str:
    """Class of a paired difference: `better`, `worse`, or nothing where chance can do it."""
    found = change_of(difference)
    return "" if found == "none" else found


# --- events and curves ---------------------------------------------------------------------------------------------


def _with_rest(phases: Mapping[str, float], seconds: float) -> dict[str, float]:
    """The phases of training, and what is left of the run's wall time."""
    rest = seconds - math.fsum(phases.values())
    return {**phases, _REST: rest} if phases and rest > _LEAST_REST * seconds else dict(phases)


def _languages(record: RunRecord, of: Mapping[str, Any]) -> str:
    """Languages that the clips of a split name, or the one that the run takes them to have."""
    return ", ".join(of.get("languages") or filter(None, [record.model.get("language")])) or "none named"


def _figures(
    record: RunRecord,
    training: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Mapping[str, Any]],
    phases: Mapping[str, float],
    names: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    figures: dict[str, str] = {}
    of_classes = task_of(record) == "classify"
    for name in names:
        rows = [
            Estimate(
                label=where,
                value=shown_number(scores[name], float(scores[name]["value"])),
                low=shown_number(scores[name], float(scores[name]["low"])),
                high=shown_number(scores[name], float(scores[name]["high"])),
            )
            for where, scores in record.scores.items()
            if name in scores
        ]
        if rows:
            called = score_title(name, names[name])
            label = _axis(called, names[name])
            figures[name] = estimates(name, rows, x_label=label, title=f"{called} with 95 % intervals")
    if loss := series("loss", training, "loss"):
        label = "loss per clip" if of_classes else "loss per token"
        figures["loss"] = curve("loss", [loss], y_label=label, title="Training loss over steps")
    if rates := _learning_rates(training):
        figures["learning_rate"] = curve(
            "learning_rate", rates, y_label="learning rate", title="Learning rate over steps"
        )
    if throughput := series("samples/s", training, "samples_per_s"):
        figures["throughput"] = curve(
            "throughput", [throughput], y_label="samples/s", title="Training throughput over steps", zero=True
        )
    alike = {
        name: score for name, score in names.items() if shown_unit(score) == shown_unit(next(iter(names.values())))
    }
    if scored := _score_over_steps(evaluations, alike, record.scores.get("before", {})):
        first = next(iter(names.values()))
        label = _axis("error rate" if first.get("better", "lower") == "lower" else "score", first)
        figures["steps"] = curve("steps", scored, y_label=label, title="Scores over steps", zero=True, markers=True)
    if phases:
        figures["phases"] = bars("phases", phases, x_label="seconds", title="Seconds by phase")
    return figures


def _learning_rates(events: Sequence[Mapping[str, Any]]) -> list[Series]:
    groups: dict[str, list[tuple[int, float]]] = {}
    for event in events:
        rates = event.get("learning_rates", event.get("learning_rate"))
        named = rates if isinstance(rates, Mapping) else {"all": rates}
        for group, rate in named.items():
            if isinstance(rate, int | float):
                groups.setdefault(str(group), []).append((event["step"], float(rate)))
    return [Series(label=group, x=[x for x, _ in points], y=[y for _, y in points]) for group, points in groups.items()]


def _score_over_steps(
    evaluations: Sequence[Mapping[str, Any]],
    names: Mapping[str, Mapping[str, Any]],
    before: Mapping[str, Mapping[str, Any]],
) -> list[Series]:
    """The scores of the evaluations, from the one before training on where there is one."""
    found: list[Series] = []
    for name in names:
        points = scores_over_steps(evaluations, name)
        if points and points[0][0] > 0 and name in before:
            points.insert(0, (0, before[name]))
        if points:
            found.append(
                Series(
                    label=score_title(name, names[name]),
                    x=[step for step, _ in points],
                    y=[shown_number(score, float(score["value"])) for _, score in points],
                    low=[shown_number(score, float(score.get("low", score["value"]))) for _, score in points],
                    high=[shown_number(score, float(score.get("high", score["value"]))) for _, score in points],
                )
            )
    return found


def _axis(called: str, score: Mapping[str, Any]) -> str:
    unit = f", {shown}" if (shown := shown_unit(score)) else ""
    return f"{called}{unit}" + ", higher is better" * (score.get("better") == "higher")


def _phase_rows(phases: Mapping[str, float]) -> list[dict[str, Any]]:
    total = math.fsum(phases.values()) or 1.0
    return [{"name": name, "seconds": seconds, "share": seconds / total} for name, seconds in phases.items()]


# --- scores --------------------------------------------------------------------------------------------------------


def _shown_scores(record: RunRecord, evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The scores that are drawn, the one that decides first: name -> the last that was taken of it."""
    taken = [*(event["scores"] for event in evaluations), *record.scores.values()]
    last = {name: score for scores in taken for name, score in scores.items() if isinstance(score, Mapping)}
    return {name: last[name] for name in drawn_scores(last)}


def _tiles(record: RunRecord, names: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """The few figures that stand on top."""
    tiles: list[dict[str, str]] = []
    before, after = record.scores.get("before", {}), record.scores.get("after", {})
    for name in names:
        if name in before and name in after:
            was = show_value(before[name])
            unit = "" if in_percent(before[name]) else shown_unit(before[name])  # said once, for the tile is narrow
            text = f"{was.removesuffix(unit).rstrip()} → {show_value(after[name])}"
            note = _change(before[name], after[name])
            worse = " worse" if _is_worse(before[name], after[name]) else ""
            title = f"{score_title(name, after[name])}, before → after"
            tiles.append({"name": title, "value": text, "note": note, "kind": f"wide{worse}"})
        elif name in (after or before):
            score = (after or before)[name]
            note = f"{show_value(score, 'low')} to {show_value(score, 'high')}, {counted(score['count'], 'clip')}"
            tiles.append({"name": score_title(name, score), "value": show_value(score), "note": note})
    tiles += _parity_tile(record)
    tiles.append({"name": "Wall time", "value": show_seconds(record.seconds), "note": "over all sessions"})
    tiles.append({"name": "Peak memory", "value": memory_size(record.peak_memory_bytes), "note": "whole process"})
    if record.energy_joules is not None:
        watt_hours = f"{record.energy_joules / 3600:.3g} Wh"
        tiles.append({"name": "Energy", "value": watt_hours, "note": f"{record.energy_joules:,.0f} J"})
    components = component_rows(record.model)
    total = math.fsum(part["parameters"] or 0 for part in components)
    if total:
        trainable = math.fsum(part["trainable"] or 0 for part in components)
        note = f"{show_count(trainable)} of {show_count(total)} parameters"
        tiles.append({"name": "Trained", "value": f"{100 * trainable / total:.3g} %", "note": note})
    return tiles


def _parity_tile(record: RunRecord) -> list[dict[str, str]]:
    """What the export scores where it is served, minus what the run is scored; nothing where there is no export."""
    found = next((finding for finding in record.findings if finding.check == "export.parity"), None)
    if found is None:
        return []
    if found.measured is None or found.limit is None:
        return [{"name": "Export, served − scored", "value": "unknown", "note": "not checked; see the findings"}]
    head = found.message.partition(":")[0]  # the verdict; the sentence itself is among the findings
    if not head.startswith(("Parity is", "No difference was found", "Served and scored differ")):
        head = "as scored" if found.severity == "note" else "what is served is not what was scored"
    return [
        {
            "name": "Export, served − scored",
            "value": f"{found.measured:+.1f} {found.unit}".replace("-", "−"),
            "note": f"{head}; {found.limit:g} allowed",
        }
    ]


def _is_worse(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    change = float(after["value"]) - float(before["value"])
    return change < 0 if after.get("better") == "higher" else change > 0


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    old, new = float(before["value"]), float(after["value"])
    if old == 0 and after.get("better") == "higher":
        return show_change(after, new)
    if old == 0:
        return "nothing to improve before" if new == 0 else show_change(after, new)
    return f"{show_change(after, new - old)}, {100 * (new - old) / old:+.0f} % relative".replace("-", "−")


def _score_rows(record: RunRecord) -> list[dict[str, Any]]:
    return [
        {
            "where": where,
            "name": score_title(name, score),
            "score": score,
            "detail": score.get("detail", {}),
        }
        for where, scores in record.scores.items()
        for name, score in scores.items()
    ]


# --- model, settings, environment ----------------------------------------------------------------------------------


def component_rows(model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of name, parameters, trainable, bytes (None where unknown) and share trained, from a list or a mapping."""
    found = model.get("components", ())
    if isinstance(found, Mapping):
        found = [
            {"name": name, **value} if isinstance(value, Mapping) else {"name": name, "parameters": value}
            for name, value in found.items()
        ]
    rows = []
    for part in found:
        total, trainable = part.get("parameters"), part.get("trainable")
        share = 100 * trainable / total if total and trainable is not None else None
        row = {"name": part["name"], "parameters": total, "trainable": trainable, "share": share}
        rows.append(row | {"bytes": part.get("bytes")})
    return rows


def _model_facts(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in flatten(model) if not name.startswith("components")]


def _ranks(ranks: Mapping[str, int]) -> dict[str, Any]:
    """How many modules have each rank, and all of them."""
    return {"histogram": sorted(Counter(ranks.values()).items()), "modules": sorted(ranks.items())}


def _settings(record: RunRecord) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """Settings that something set, and those left at their default: name, value, origin."""
    rows = [(name, value, str(record.config_origin.get(name, "default"))) for name, value in flatten(record.config)]
    return [row for row in rows if row[2] != "default"], [row for row in rows if row[2] == "default"]


def flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted name and shown value of every leaf; lists are leaves."""
    rows: list[tuple[str, str]] = []
    for key, part in value.items():
        name = f"{prefix}{key}"
        if isinstance(part, Mapping) and part:
            rows += flatten(part, f"{name}.")
        else:
            rows.append((name, part if isinstance(part, str) else json.dumps(part, ensure_ascii=False, default=str)))
    return rows
