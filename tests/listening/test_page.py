"""The pages, opened in a Chromium: no error, sound plays, words stand in their order, and choices are kept."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sonotune.listening.choices import ChoiceLog, Session, read_choices
from sonotune.listening.page import MAX_EMBEDDED, comparison_page, embedded_sound, errors_page, served_sound
from sonotune.listening.server import Served, address_of, make_server
from sonotune.listening.trials import Trial, make_trials
from sonotune.listening.utterances import Systems, read_systems
from sonotune.reports.browser import Browser, build_browser_html, build_errors_html
from sonotune.reports.edits import difference_tokens, direction, edit_tokens

Make = Callable[..., tuple[Path, Path, Path]]
HOSTILE = "</script><script>document.title='hacked'</script> <img src=x onerror=alert(1)> \u202eevil & \"quoted\""
HEBREW = ("היום פגשתי את דני ב abc אתמול", "היום פגשתי את דנה ב xyz אתמול בערב")
FIRST = [HEBREW[1], "one two four", HOSTILE, "", "five"]
SECOND = [HEBREW[0], "one two three", "nothing of it", "a", "six"]
REFERENCES = [HEBREW[0], "one two three", HOSTILE, None, "five"]


@pytest.fixture
def pair(tmp_path: Path, systems: Make) -> Systems:
    manifest, first, second = systems(tmp_path, REFERENCES, FIRST, SECOND)
    return read_systems([first, second], manifest=str(manifest))


def one_of(pair: Systems) -> Systems:
    return read_systems([pair.files[0]], manifest=pair.source)


def blind(pair: Systems, **how: Any) -> tuple[Browser, list[Trial], Session]:
    session = Session(mode="blind", seed=1, form="written", clips=200, random=None, files=pair.digests)
    trials = make_trials(pair.utterances, seed=1, form="written")
    return comparison_page(pair, trials, session, **{"sound": embedded_sound, **how}), trials, session


def errors(pair: Systems, **how: Any) -> Browser:
    session = Session(mode="errors", seed=0, form="written", clips=None, random=None, files=pair.digests)
    return errors_page(pair, session, **{"sound": embedded_sound, **how})


def written(folder: Path, page: Browser) -> str:
    path = folder / "page.html"
    path.write_text(build_browser_html(page), "utf-8")
    return path.as_uri()


# --- without a browser ---------------------------------------------------------------------------


def test_edits_and_differences_are_in_reading_order():
    assert edit_tokens("a b c", "a x c d") == ["a", ["b", "x"], "c", ["", "d"]]
    assert difference_tokens("a b c", "a x c d") == (["a", ["b"], "c"], ["a", ["x"], "c", ["d"]])
    assert direction(HEBREW[0]) == direction("WhatsApp שלום לכולם") == "rtl"
    assert direction("one שתיים three") == direction("123", "") == "ltr"


def test_a_page_names_no_system_no_path_and_no_network(tmp_path: Path, pair: Systems):
    html = build_browser_html(blind(pair)[0])
    for secret in (*pair.names, *map(str, pair.files), str(tmp_path), "a.jsonl", "b.jsonl"):
        assert secret not in html
    assert "http:" not in html
    assert "https:" not in html
    assert html.count("<script") == 2  # the data and the program
    assert "hacked" in html
    assert html == build_browser_html(blind(pair)[0])


def test_only_the_first_clips_are_embedded(pair: Systems, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sonotune.listening.page.MAX_EMBEDDED", 2)
    views = errors(one_of(pair)).views
    assert [bool(view.sound) for view in views] == [True, True, False, False, False]
    assert "--serve plays all" in views[2].silence
    assert MAX_EMBEDDED == 200


def test_a_page_without_sound_of_two_thousand_is_small():
    rows = [
        {
            "id": f"c{i}",
            "reference": " ".join(f"word{i + j}" for j in range(12)),
            "hypothesis": f"word{i} none",
            "duration_s": 4,
        }
        for i in range(2000)
    ]
    html = build_errors_html("run", rows)
    assert html is not None
    assert len(html.encode()) < 5_000_000
    assert "<audio" not in html
    assert build_errors_html("run", [{"id": "a", "labels": ["x"]}, {"id": "b", "hypothesis": "y"}]) is None


# --- in a browser --------------------------------------------------------------------------------


def test_the_errors_of_a_hebrew_model_are_shown_in_their_order(tab: Any, tmp_path: Path, pair: Systems):
    tab.open(written(tmp_path, errors(one_of(pair))))
    found = tab.run(
        """(() => {
          const card = [...document.querySelectorAll(".item")].find((one) => one.textContent.includes("abc"));
          const line = card.querySelector(".words");
          const at = (element) => { const box = element.getBoundingClientRect(); return [box.left, box.right]; };
          const words = [...line.querySelectorAll("bdi")].map((word) => [word.textContent, ...at(word)]);
          const of = (tag) => [...line.querySelectorAll(tag)].map((one) => one.textContent);
          return { dir: line.dir, words, del: of("del"), ins: of("ins") };
        })()"""
    )
    assert found["dir"] == "rtl"
    assert (found["del"], found["ins"]) == (["דני", "abc"], ["דנה", "xyz", "בערב"])
    # Each word lies to the left of the one before it, Latin ones among them too.
    lefts = [left for _, left, _ in found["words"]]
    assert [word for word, _, _ in found["words"]][3:7] == ["דני", "דנה", "ב", "abc"]
    assert lefts == sorted(lefts, reverse=True)
    assert tab.problems == []


def test_hostile_texts_are_text(tab: Any, tmp_path: Path, pair: Systems):
    for page in (errors(one_of(pair)), blind(pair)[0]):
        tab.open(written(tmp_path, page))
        if page.mode == "errors":
            tab.run("document.getElementById('least').value = '0', filter()")
        assert "hacked" not in tab.run("document.title")
        assert tab.run("document.querySelectorAll('img, script').length") == 2
        assert "onerror" in tab.run("document.getElementById('items').textContent")
        assert tab.problems == []


def test_a_page_that_is_a_file_plays_and_keeps_choices(tab: Any, tmp_path: Path, pair: Systems):
    page, trials, session = blind(pair)
    address = written(tmp_path, page)
    tab.open(address)
    assert tab.run("document.body.innerText").count("Left is better") == len(trials) == 5
    tab.press("j")
    tab.press("1")
    assert tab.wait("document.getElementById('problem').textContent").startswith("Give your name")
    tab.run("document.activeElement.blur(), document.getElementById('listener').value = 'דנה'")
    for key in ("1", "2", "3"):  # a choice by a key goes on to the next clip
        tab.press(key)
        tab.wait(f"document.getElementById('status').textContent.startsWith('{key} of 5 chosen')")
    tab.press(" ")
    assert tab.wait("[...document.querySelectorAll('audio')].some((one) => one.currentTime > 0.05)")
    tab.press("k")
    assert tab.run("document.querySelectorAll('button[aria-pressed=true]').length") == 3
    tab.run("correct(data.items[0], 'a better text')")
    tab.open(address)  # the tab was closed, and nothing is lost
    assert tab.run("document.getElementById('status').textContent").startswith("3 of 5 chosen")
    tab.run("reveal()")
    table = tab.run("document.getElementById('revealed').innerText")
    assert pair.names[0] in table
    assert pair.names[1] in table
    tab.run("choose(data.items[4], 'left')")
    tab.run("URL.createObjectURL = (blob) => { window.saved = blob.text(); return 'data:,'; }")
    tab.run("save()")
    file = tmp_path / "choices.jsonl"
    file.write_text(tab.run("window.saved"), "utf-8")
    found, entries = read_choices(file)
    assert found == session
    assert [entry["kind"] for entry in entries] == ["choice"] * 3 + ["correction", "revealed", "choice"]
    assert [entry["choice"] for entry in entries[:3]] == ["left", "right", "same"]  # type: ignore[typeddict-item]
    assert [entry["clip"] for entry in entries[:3]] == [trial.utterance.clip.id for trial in trials[:3]]  # type: ignore[typeddict-item]
    assert {entry["listener"] for entry in entries} == {"דנה"}
    counted = [int(number) for number in re.findall(r"(\d+)\t(\d+)\t(\d+)", table) for number in number]
    assert sum(counted) == 3
    assert tab.problems == []


def test_a_served_page_plays_and_keeps_choices(tab: Any, tmp_path: Path, pair: Systems):
    page, trials, session = blind(pair, sound=served_sound, served=True)
    log = ChoiceLog(path=tmp_path / "choices.jsonl", session=session)
    served = Served(page=page, clips=[trial.utterance.clip for trial in trials], log=log)
    with make_server(served) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            tab.open(address_of(server, served))
            tab.run("document.getElementById('listener').value = 'ana'")
            tab.press("j")
            tab.press(" ")
            assert tab.wait("document.querySelector('audio').currentTime > 0.05")
            tab.press("2")
            tab.wait("document.getElementById('status').textContent.startsWith('1 of 5')")
            tab.run("correct(data.items[1], '  the   right text ')")
            assert tab.problems == []
            log.path.unlink()
            log.path.mkdir()  # a disk that takes nothing any more
            tab.run("choose(data.items[2], 'left')")
            assert "Not saved" in tab.run("document.getElementById('problem').textContent")
            assert tab.run("document.getElementById('status').textContent").startswith("1 of 5")
        finally:
            server.shutdown()
            thread.join()
    kinds = [(entry["kind"], entry["listener"]) for entry in log.entries]
    assert kinds == [("choice", "ana"), ("correction", "ana")]
    assert log.entries[1]["text"] == "the right text"  # type: ignore[typeddict-item]


def test_two_thousand_utterances_are_there_in_three_seconds(tab: Any, tmp_path: Path):
    rows = [
        {
            "id": f"c{i}",
            "reference": " ".join(f"word{i + j}" for j in range(12)),
            "hypothesis": " ".join(f"word{i + j}" for j in range(i % 13)),
            "duration_s": 4.0,
        }
        for i in range(2000)
    ]
    path = tmp_path / "errors.html"
    path.write_text(build_errors_html("run", rows) or "", "utf-8")
    tab.open(path.as_uri())
    assert tab.run("performance.getEntriesByType('navigation')[0].domComplete") < 3000
    shown = "document.getElementById('status').textContent"
    wrong = sum(i % 13 < 12 for i in range(2000))
    assert tab.run(shown) == f"{wrong} of 2000 shown"
    assert tab.run("document.querySelectorAll('.item').length") == 50
    tab.run("document.getElementById('least').value = '12', filter()")
    assert tab.run(shown) == f"{sum(i % 13 == 0 for i in range(2000))} of 2000 shown"
    tab.run("document.getElementById('find').value = 'WORD1999', filter()")
    assert tab.run(shown).split()[0] == str(sum(i % 13 == 0 and i <= 1999 <= i + 11 for i in range(2000)))
    tab.run("document.getElementById('find').value = '', document.getElementById('least').value = 0, filter()")
    for _ in range(51):  # into the second page
        tab.press("j")
    assert tab.run("document.getElementById('page').textContent") == "Page 2 of 40"
    assert tab.run("document.activeElement.getAttribute('aria-label')") == "Clip 51"
    assert tab.run("document.querySelectorAll('audio, textarea').length") == 0
    assert tab.problems == []


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_screen_and_every_control_has_a_name(
    tab: Any, tmp_path: Path, pair: Systems, width: int
):
    tab.open(written(tmp_path, blind(pair)[0]))
    tab.look(tmp_path / "page.png", width=width)
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    controls = [
        node
        for node in nodes
        if node.get("role", {}).get("value") in ("button", "textbox", "checkbox", "searchbox", "audio")
        and not node.get("ignored")
    ]
    assert len(controls) > 20
    assert [node for node in controls if not node.get("name", {}).get("value")] == []


def test_a_printed_page_has_texts_and_no_controls(tab: Any, tmp_path: Path, pair: Systems):
    tab.open(written(tmp_path, errors(one_of(pair))))
    tab.send("Emulation.setEmulatedMedia", media="print")
    visible = "[...document.querySelectorAll('button, input, audio')].filter((one) => one.offsetParent !== null).length"
    assert tab.run(visible) == 0
    assert "דנה" in tab.run("document.getElementById('items').innerText")


def test_data_in_the_page_is_the_data_that_was_given(pair: Systems):
    html = build_browser_html(errors(one_of(pair)))
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    body = json.loads(found[1])
    by_id = {item["id"]: item for item in body["items"]}
    assert by_id["c2"]["transcript"] == HOSTILE
    assert by_id["c3"]["errors"] is None
    assert [item["errors"] for item in body["items"]][:2] == [3, 1]
