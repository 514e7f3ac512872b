"""The report of a classification: every class, the confusion matrix, slices and the worst clips."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from sonotune.metrics.classification import class_report, classification_scores, confusion
from sonotune.reports.classes import view_classes
from sonotune.reports.record import build_html
from sonotune.types import RunRecord

SVG = "{http://www.w3.org/2000/svg}"
EDGES_S = (0.0, 2.0, 5.0)
RUDIMENTS = ("flam_tap", "inverted_flam_tap", "paradiddle", '<b>roll</b> & "five"', "drag")


def one(
    name: str, truth: str | list[str], scores: dict[str, float], decided: list[str] | None = None, **facts: Any
) -> dict[str, Any]:
    best = [max(scores, key=scores.__getitem__)] if scores else []
    return {
        "id": name,
        "labels": [truth] if isinstance(truth, str) else truth,
        "decided": best if decided is None else decided,
        "scores": scores,
        "duration_s": 1.5,
        "domain": None,
        "speaker": None,
        "language": None,
    } | facts


def spread(label: str, share: float) -> dict[str, float]:
    rest = (1 - share) / (len(RUDIMENTS) - 1)
    return {name: share if name == label else rest for name in RUDIMENTS}


def small() -> list[dict[str, Any]]:
    """Twenty flam taps, seven of them heard as inverted; six paradiddles, all right; a roll; no drag at all."""
    flams = [
        one(
            f"f{index:02}",
            "flam_tap",
            spread("inverted_flam_tap" if index < 7 else "flam_tap", 0.5 + index / 50),
            domain="kit a" if index % 2 else "kit b",
            speaker=f"drummer {index % 6}",
        )
        for index in range(20)
    ]
    rest = [one(f"p{index}", "paradiddle", spread("paradiddle", 0.9), domain="kit b") for index in range(6)]
    return [*flams, *rest, one("r0", RUDIMENTS[3], spread("flam_tap", 0.97), domain="kit b"), one("x0", "flam_tap", {})]


def many_classes(number: int, clips: int = 2000) -> list[dict[str, Any]]:
    draw = random.Random(number)  # noqa: S311  (made-up data)
    labels = [f"rudiment_{index:03}" for index in range(number)]
    rows = []
    for index in range(clips):
        truth = draw.randrange(number)
        heard = truth if draw.random() < 0.7 else min(number - 1, max(0, truth + draw.choice((-2, -1, 1, 2, 9))))
        scores = dict.fromkeys(labels, 0.2 / number) | {labels[heard]: round(draw.uniform(0.4, 0.99), 3)}
        rows.append(one(f"c{index}", labels[truth], scores, domain=f"kit {index % 4}", duration_s=index % 7))
    return rows


def scores_of(rows: list[dict[str, Any]], labels: tuple[str, ...], **options: Any) -> dict[str, Any]:
    truths, scores = [row["labels"] for row in rows], [row["scores"] for row in rows]
    found = classification_scores(truths, scores, labels, bootstrap=50, **options)
    return {name: score.to_json() for name, score in found.items()}


@pytest.fixture(scope="module")
def class_record(run_record: RunRecord) -> RunRecord:
    right = [row | {"scores": spread(row["labels"][0], 0.9)} for row in small()[:5]] + small()[5:]
    return replace(run_record, scores={"before": scores_of(small(), RUDIMENTS), "after": scores_of(right, RUDIMENTS)})


@pytest.fixture(scope="module")
def class_events() -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"kind": "step", "step": step, "loss": 3.0 / step} for step in range(1, 20)]
    tried = [
        {"step": step, "scores": {name: {"value": step / 20} for name in ("accuracy", "f1_macro", "map")}}
        for step in (0, 10, 19)
    ]
    return [*steps, *tried]


@pytest.fixture(scope="module")
def html(class_record, class_events) -> str:
    return build_html(class_record, class_events, small())


@pytest.fixture(scope="module")
def page(html: str, read_page):
    return read_page(html)


def drawn(svg: str) -> list[str]:
    """What the cells say to the pointer."""
    root = ET.fromstring(svg)  # noqa: S314  (our own SVG)
    return [group.findtext(f"{SVG}title", "") for group in root.iter(f"{SVG}g")]


def test_the_page_is_whole_and_says_nothing_of_words(html: str, page) -> None:
    assert page.open == []
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections[:7] == ["findings", "data", "scores", "training", "classes", "predictions", "slices"]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for word in ("WER", "CER", "error rate", "Error rate", "per token", "substituted", "said"):
        assert word not in " ".join(page.text.values()), word


def test_the_same_run_gives_the_same_bytes(html: str, class_record, class_events) -> None:
    assert build_html(class_record, iter(class_events), small()) == html


def test_names_of_classes_are_data(html: str, page) -> None:
    assert "<b>roll" not in html
    assert RUDIMENTS[3] in page.flat("classes")
    assert "&lt;b&gt;roll&lt;/b&gt; &amp; &quot;five&quot; heard as flam_tap, 1 of 1</title>" in html


def test_scores_stand_on_top_and_in_the_figures(page, class_record) -> None:
    top = page.flat("")
    for name in ("Accuracy", "Macro F1", "mAP"):
        assert f"{name}, before → after" in top
    before, after = (class_record.scores[where]["f1_macro"]["value"] for where in ("before", "after"))
    assert f"{100 * before:.1f} % → {100 * after:.1f} %" in top
    labels = [attributes.get("aria-label") for tag, attributes in page.elements if tag == "svg"]
    assert labels[:5] == [
        "Accuracy with 95 % intervals",
        "Macro F1 with 95 % intervals",
        "mAP with 95 % intervals",
        "Scores over steps",
        "Training loss over steps",
    ]
    assert "score, %, higher is better" in page.flat("training")
    assert "loss per clip" in page.flat("training")
    assert re.search(r"after ?Macro F1", page.flat("scores"))


def test_a_score_that_was_zero_before_is_an_improvement(run_record, read_page) -> None:
    scores = {
        where: {"accuracy": {"value": value, "low": 0.0, "high": 1.0, "count": 9, "better": "higher"}}
        for where, value in (("before", 0.0), ("after", 0.25))
    }
    assert "+25.0 points" in read_page(build_html(replace(run_record, scores=scores))).flat("")


def test_every_class_is_in_the_table_the_worst_first(page) -> None:
    expected = class_report([row["labels"] for row in small()], [row["scores"] for row in small()], RUDIMENTS)
    flam = expected[0]
    view = view_classes(small(), EDGES_S)
    assert view is not None
    assert {row.label: row for row in view["table"]} == {row.label: row for row in expected}
    assert [row.f1 for row in view["table"][:3]] == sorted(row.f1 for row in expected if row.f1 is not None)
    shown = page.flat("classes")
    precision, recall, f1 = (100 * value for value in (flam.precision, flam.recall, flam.f1) if value is not None)
    assert re.search(rf"flam_tap 21 ?{precision:.1f} % ?{recall:.1f} % ?{f1:.1f} %", shown)
    assert re.search(r"never given ?0\.0 % ?0\.0 %", shown)


def test_an_absent_class_is_called_absent_and_never_zero(html: str, page) -> None:
    cells = re.search(r"<bdi>drag</bdi></td>(.*?)</tr>", html, re.DOTALL)
    assert cells is not None
    assert re.sub(r"<[^>]+>", "", cells[1]).strip() == "absent"
    given = re.search(r"<bdi>inverted_flam_tap</bdi></td>(.*?)</tr>", html, re.DOTALL)
    assert given is not None
    assert re.sub(r"<[^>]+>", "", given[1]).strip() == "absent, given to 7 clips"
    assert "because no clip has them: inverted_flam_tap, drag." in page.flat("classes")


def test_long_tables_end_with_how_many_more_there_are(class_record, read_page) -> None:
    shown = read_page(build_html(class_record, [], many_classes(70))).flat("classes")
    assert "and 10 more." in shown
    assert "Of 70 classes, the 60 that are confused most often are drawn." in shown


def test_confusions_are_told_in_words(page) -> None:
    shown = page.flat("classes")
    assert "flam_tap heard as inverted_flam_tap, 7 of 20" in shown
    assert shown.index("7 of 20") < shown.index(f"{RUDIMENTS[3]} heard as flam_tap, 1 of 1")
    assert "1 clip without a decision left out." in shown
    assert "1 class that no clip has and none was given left out." in shown


@pytest.mark.parametrize("number", [2, 40, 60])
def test_the_matrix_draws_what_the_metric_counts(number: int) -> None:
    rows = many_classes(number, clips=600)
    view = view_classes(rows, EDGES_S)
    assert view is not None
    labels = list(rows[0]["scores"])
    counts = confusion([row["labels"][0] for row in rows], [row["decided"][0] for row in rows], labels)
    expected = {
        f"{labels[row]} recognised, {count} of {counts[row].sum()}"
        if row == column
        else f"{labels[row]} heard as {labels[column]}, {count} of {counts[row].sum()}"
        for row in range(number)
        for column in range(number)
        if (count := counts[row, column])
    }
    assert set(drawn(view["matrix"])) == expected
    assert len(drawn(view["matrix"])) == len(expected), "a cell of 0 is drawn"


@pytest.mark.parametrize("number", [2, 40, 60])
def test_the_matrix_fits_the_page_and_takes_its_colours(number: int) -> None:
    view = view_classes(many_classes(number), EDGES_S)
    assert view is not None
    root = ET.fromstring(view["matrix"])  # noqa: S314  (our own SVG)
    width, height = map(float, root.get("viewBox", "").split()[2:])
    assert width <= 1000
    for cell in root.iter(f"{SVG}rect"):
        x, y, side = (float(cell.get(name, "")) for name in ("x", "y", "width"))
        assert side >= 11
        assert 0 < x < x + side < width
        assert 0 < y < y + side < height
    assert set(re.findall(r"var\((--[\w-]+)\)", view["matrix"])) >= {"--ink-2", "--line", "--series-2", "--series-3"}
    assert not re.search(r"#[0-9a-f]{3}", view["matrix"]), "a fixed colour would not follow the dark page"


def test_colour_grows_with_the_share_of_the_row() -> None:
    view = view_classes(small(), EDGES_S)
    assert view is not None
    root = ET.fromstring(view["matrix"])  # noqa: S314  (our own SVG)
    shares = {
        group.findtext(f"{SVG}title"): float(re.findall(r"fill-opacity: ([\d.]+)", ET.tostring(group, "unicode"))[0])
        for group in root.iter(f"{SVG}g")
    }
    assert shares["paradiddle recognised, 6 of 6"] == 1.0
    assert 0.3 < shares["flam_tap heard as inverted_flam_tap, 7 of 20"] < shares["flam_tap recognised, 13 of 20"] < 0.8


def test_the_worst_clips_are_those_surest_of_a_wrong_class(html: str, page) -> None:
    shown = re.findall(r'<code dir="auto">(\w+)</code>', html)
    assert shown == ["r0", "f06", "f05", "f04", "f03", "f02", "f01", "f00", "x0"]
    assert "97.0 % flam_tap" in page.flat("predictions")
    assert "no decision" in page.flat("predictions")
    assert '<del title="truth"><bdi>flam_tap</bdi></del><ins title="decided"><bdi>inverted_flam_tap</bdi></ins>' in html
    assert "9 of 9 clips decided wrongly, out of 28" in page.flat("predictions")


def test_slices_have_accuracy_and_macro_f1(page) -> None:
    shown = page.flat("slices")
    for by in ("By domain", "By duration", "By speaker"):
        assert by in shown
    assert "By language" not in shown
    assert re.search(r"kit a ?10 ?70\.0 %", shown)  # 1, 3 and 5 of the odd ten are wrong
    part = [row for row in small() if row["domain"] == "kit a"]
    scores = scores_of(part, RUDIMENTS)
    view = view_classes(small(), EDGES_S)
    assert view is not None
    found = next(row for group in view["slices"] if group["by"] == "domain" for row in group["rows"])
    assert found["value"] == "kit a"
    assert found["accuracy"] == pytest.approx(scores["accuracy"]["value"])
    assert found["f1_macro"] == pytest.approx(scores["f1_macro"]["value"])
    assert found["low"] < found["accuracy"] < found["high"]


def test_only_the_worst_of_many_slices_are_shown() -> None:
    rows = [one(str(i), "drag", spread("drag", 0.9), speaker=f"s{i:03}") for i in range(99)]
    rows.append(one("99", "drag", spread("paradiddle", 0.9), speaker="s099"))
    view = view_classes(rows, EDGES_S)
    assert view is not None
    speakers = next(group for group in view["slices"] if group["by"] == "speaker")
    assert (speakers["rows"][0]["value"], speakers["left_out"]) == ("s099", 60)


def several() -> list[dict[str, Any]]:
    return [
        one("m0", ["rain", "wind"], {"rain": 0.9, "wind": 0.2, "dog": 0.8}, ["rain", "dog"]),
        one("m1", [], {"rain": 0.1, "wind": 0.1, "dog": 0.1}, []),
        one("m2", ["rain"], {"rain": 0.7, "wind": 0.1, "dog": 0.3}, ["rain"]),
    ]


def test_clips_of_several_classes_have_a_table_and_no_matrix(run_record, read_page) -> None:
    record = replace(run_record, scores={"after": scores_of(several(), ("rain", "wind", "dog"), multi_label=True)})
    html = build_html(record, [], several())
    page = read_page(html)
    assert "Confusion matrix" not in html
    assert "heard as" not in html
    assert re.search(r"rain ?2 ?100\.0 % ?100\.0 %", page.flat("classes"))
    assert "absent, given to 1 clip" in page.flat("classes")
    labels = [attributes.get("aria-label") for tag, attributes in page.elements if tag == "svg"]
    assert labels[0] == "mAP with 95 % intervals"
    assert "whole set of classes" in page.flat("scores")
    words = re.search(r'<div class="words" dir="ltr">(.*?)</div>', html, re.DOTALL)
    assert words is not None
    assert re.match(r"\s*<bdi>rain</bdi>\s", words[1])
    assert '<del title="missed"><bdi>wind</bdi></del>' in words[1]
    assert '<ins title="not so"><bdi>dog</bdi></ins>' in words[1]
    assert "1 of 1 clips decided wrongly, out of 3" in page.flat("predictions")


def test_where_one_class_is_the_rule_a_clip_without_one_is_not_judged() -> None:
    rows = [*small(), one("unknown", [], spread("drag", 0.9))]
    told, asked = view_classes(rows, EDGES_S, multi_label=False), view_classes(rows, EDGES_S)
    assert told is not None
    assert asked is not None
    assert (told["many"], told["clips"], told["matrix"] != "") == (False, 28, True)
    assert (asked["many"], asked["clips"], asked["matrix"]) == (True, 29, "")


def test_damaged_rows_do_no_harm(run_record, read_page) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "labels": ["\ud800"], "decided": None, "scores": None},
        {"id": "b", "labels": ["x \x00"], "decided": ["y"], "scores": {"y": float("nan"), "x": None}},
        {"id": "c"},
    ]
    html = build_html(run_record, [], rows)
    html.encode("utf-8")
    assert read_page(html).open == []
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", html)
    assert view_classes([], EDGES_S) is None
    assert view_classes([{"id": "c"}], EDGES_S) is None


def test_nobody_heard_means_no_matrix() -> None:
    view = view_classes([one("a", "drag", {})], EDGES_S)
    assert view is not None
    assert (view["matrix"], view["confusions"], view["wrong"]) == ("", [], 1)


def test_classes_need_no_torch() -> None:
    program = (
        "import sys\nfrom sonotune.reports.classes import view_classes\n"
        "rows = [{'id': 'a', 'labels': ['x'], 'decided': ['y'], 'scores': {'x': 0.1, 'y': 0.9}}]\n"
        "assert view_classes(rows, (0.0, 2.0))['matrix']\n"
        "found = {'torch', 'sklearn', 'matplotlib'} & sys.modules.keys()\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
