"""The page of a comparison: the verdict first, texts escaped and in their direction, and only what is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sonotune.evaluation.compare import Comparison, compare
from sonotune.reports.comparison import MAX_CHANGED, System, build_comparison_html, changed_texts

HOSTILE = "<script>alert(1)</script>"
HEBREW = "\u05e9\u05dc\u05d5\u05e9 \u05d0\u05e8\u05d1\u05e2"


def rows(texts: Sequence[str], hypotheses: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "id": f"c{index}",
            "reference": text,
            "hypothesis": hypothesis,
            "duration_s": 2.0 + index,
            "domain": "phone" if index % 2 else "studio",
        }
        for index, (text, hypothesis) in enumerate(zip(texts, hypotheses, strict=True))
    ]


def system(name: str, own: Sequence[dict[str, Any]], folder: Path, **changes: Any) -> tuple[System, Path]:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in own), "utf-8")
    return System(name=name, places=[str(path)], rows=own, **changes), path


def test_word_confidences_stand_by_slice_and_what_cannot_be_said_is_not_defined(tmp_path: Path) -> None:
    texts = ["one two three four"] * 40
    found = []
    for name, wrong in (("a", 4), ("b", 40)):
        own = rows(texts, texts)
        for index, row in enumerate(own):
            rights = [index % wrong > 0 or row["domain"] == "phone"] * 4
            row["words"] = [{"text": "x", "confidence": 0.9 if one else 0.5, "right": one} for one in rights]
        found.append(system(name, own, tmp_path))
    compared = compare([found[0][1]], [found[1][1]], resamples=200)
    html = build_comparison_html(compared, found[0][0], found[1][0])
    section = html.partition('<section id="confidence">')[2].partition("</section>")[0]
    assert "phone" in section
    assert "studio" in section
    assert section.count("not defined</td>") == 2  # domain=phone, in which no word is wrong, and the longest clips
    assert "nan" not in section.lower()


@pytest.fixture
def texts() -> list[str]:
    return [HEBREW if index == 0 else f"{HOSTILE} two three four {index}" for index in range(60)]


def compared(
    texts: Sequence[str], first: Sequence[str], second: Sequence[str], tmp_path: Path, **changes: Any
) -> tuple[Comparison, str]:
    one, first_path = system("A-run", rows(texts, first), tmp_path, **changes)
    other, second_path = system("B-run", rows(texts, second), tmp_path, **changes)
    found = compare([first_path], [second_path], resamples=200)
    return found, build_comparison_html(found, one, other)


def test_the_verdict_comes_first_and_says_how_much_and_how_sure(
    texts: list[str], tmp_path: Path, read_page: Any
) -> None:
    worse = [text.rsplit(" ", 1)[0] for text in texts]
    found, html = compared(texts, worse, texts, tmp_path)
    page = read_page(html)
    assert not page.open
    top = " ".join(page.text[""].split())
    assert "B is better WER goes from" in top
    assert f"{100 * found.primary.first:.1f} % (A) to 0.0 % (B) on 60 clips" in top
    _, html = compared(texts, texts, worse, tmp_path)
    assert "B is worse" in html
    assert f"Differences are B minus A, on the same {found.clips} clips." in " ".join(read_page(html).text[""].split())


def test_what_chance_can_do_is_no_difference_and_what_could_be_seen_is_said(
    texts: list[str], tmp_path: Path, read_page: Any
) -> None:
    one = [text if index % 3 else f"{text} so" for index, text in enumerate(texts)]
    other = [text if (index + 1) % 3 else f"{text} so" for index, text in enumerate(texts)]
    page = read_page(compared(texts, one, other, tmp_path)[1])
    top = " ".join(page.text[""].split())
    assert "no difference shown" in top
    assert "would be seen in 80 % of the cases" in top


def test_texts_are_counted_shown_in_their_direction_and_never_run(
    texts: list[str], tmp_path: Path, read_page: Any
) -> None:
    other = list(texts)
    other[0] = HEBREW.split()[0]
    other[1] = ""
    other[2] = texts[2] + " more"
    first = list(texts)
    first[3] = "two three four 3"
    found, html = compared(texts, first, other, tmp_path)
    assert HOSTILE not in html
    page = read_page(html)
    assert "B has fewer wrong words in 1 of 60 texts and more in 3; 56 texts are the same" in page.flat("texts")
    assert "(nothing recognised)" in page.flat("texts")
    assert {"dir": "rtl", "class": "words"} in [attributes for tag, attributes in page.elements if tag == "div"]
    assert "domainphone30" in page.flat("slices")
    assert found.clips == 60
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in page.elements}


def test_many_changed_texts_are_the_largest_changes(texts: list[str]) -> None:
    longer = [text + " so" * (1 + index) for index, text in enumerate(texts)]
    found = changed_texts(rows(texts, texts), rows(texts, longer))
    assert (found["worse"], found["better"], found["texts"]) == (60, 0, 60)
    assert [row["id"] for row in found["lost"]] == [f"c{59 - index}" for index in range(MAX_CHANGED)]
    assert found["gained"] == []
    classes = [{"id": "c", "labels": ["a"], "decided": ["b"]}]
    assert changed_texts(classes, classes)["texts"] == 0


def test_runs_show_what_they_cost_what_was_set_and_what_broke(
    texts: list[str], tmp_path: Path, run_record: Any, run_events: Any, read_page: Any
) -> None:
    bad = [text.rsplit(" ", 1)[0] for text in texts]
    one, first_path = system("A-run", rows(texts, bad), tmp_path, record=run_record, events=run_events)
    score = {
        "value": 0.1,
        "low": 0.05,
        "high": 0.2,
        "count": 42,
        "unit": "fraction",
        "better": "lower",
        "title": "Wrong",
    }
    broken = {
        "panel": "nonspeech",
        "score": "w",
        "clips": 42,
        "outcome": "broke",
        "before": {"w": score},
        "after": {"w": score | {"value": 0.9}},
        "difference": {"w": {"value": 0.8, "low": 0.7, "high": 0.9, "better": "lower"}},
    }
    fields = {name: getattr(run_record, name) for name in asdict(run_record)}
    changed = type(run_record)(
        **fields
        | {
            "config": {**run_record.config, "adapter": {"targets": ["q_proj"], "rank": 16}},
            "retention": (broken,),
            "seconds": 10.0,
        }
    )
    other, second_path = system("B-run", rows(texts, texts), tmp_path, record=changed, events=run_events)
    found = compare([first_path], [second_path], resamples=200)
    page = read_page(build_comparison_html(found, one, other))
    assert "B-run broke nonspeech: Wrong 10.0 % \u2192 90.0 %" in " ".join(page.text[""].split())
    assert "adapter.rank816" in page.flat("settings")
    assert "training.learning_rate" not in page.flat("settings")
    assert "Wall time2 min 23 s10 s" in page.flat("costs")
    assert "Trainable parameters180 000180 000" in page.flat("costs")
    assert "Training, samples a second (median)" in page.flat("costs")
    assert sum(tag == "svg" for tag, _ in page.elements) == 2
