"""What is shown of work that takes time."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator

import pytest

from sonotune import progress
from sonotune.progress import Phase, about, duration, hide, note, phase, shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Phases are shown at once, and looked at often."""
    monkeypatch.setattr(progress, "SHOWN_AFTER_S", 0.05)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.2)
    monkeypatch.setattr(progress, "LOOK_EVERY_S", 0.02)
    yield
    hide()


def wait_for(stream: io.StringIO, text: str) -> None:
    until = time.monotonic() + 5
    while text not in stream.getvalue():
        assert time.monotonic() < until, stream.getvalue()
        time.sleep(0.01)


def test_without_a_terminal_a_long_phase_is_a_line_again_and_again_and_one_at_its_end():
    stream = io.StringIO()
    with shown(stream=stream), phase("recognising", 40, "clips") as advance:
        wait_for(stream, "recognising: 0 of 40 clips")
        advance(10)
        wait_for(stream, "recognising: 10 of 40 clips")
        advance(40)
    lines = stream.getvalue().splitlines()
    assert lines[-1].startswith("recognising: 40 clips, took ")
    assert any("about" in line and line.endswith("left") for line in lines)


def test_a_short_phase_says_nothing():
    stream = io.StringIO()
    with shown(stream=stream), phase("loading"):
        pass
    assert stream.getvalue() == ""


def test_nothing_is_shown_unless_it_is_asked_for():
    stream = io.StringIO()
    with phase("loading"), shown(enabled=False, stream=stream), phase("loading", 3) as advance:
        advance(3)
        note("nothing")
    assert stream.getvalue() == ""
    assert threading.active_count() == 1 or not any("Lines" in repr(one) for one in threading.enumerate())


def test_a_terminal_has_bars_and_keeps_a_line_of_what_took_long():
    stream = Terminal()
    with shown(stream=stream):
        note("model    whisper_nano [en]")
        with phase("calibrating", 4, "clips") as advance:
            advance(2)
            time.sleep(0.1)
            advance(4)
    told = stream.getvalue()
    assert "model    whisper_nano [en]" in told
    assert "calibrating" in told
    assert "calibrating: 4 clips, took 0 s" in told


def test_a_bar_goes_on_though_the_work_does_not():
    stream = Terminal()
    with shown(stream=stream), phase("loading"):
        wait_for(stream, "0 s")
        wait_for(stream, "1 s")


def test_a_phase_that_ends_a_moment_after_its_first_line_has_no_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "SHOWN_AFTER_S", 0.5)
    stream = io.StringIO()
    with shown(stream=stream), phase("starting"):
        wait_for(stream, "starting")
    assert stream.getvalue().count("\n") == 1


def test_a_phase_says_what_it_is_about():
    stream = io.StringIO()
    with shown(stream=stream), about("test clips"), phase("recognising", 4, "clips"):
        wait_for(stream, "recognising test clips: 0 of 4 clips")


def test_the_phase_inside_another_is_the_one_that_is_told():
    stream = io.StringIO()
    with shown(stream=stream), phase("training", 10, "steps"), phase("recognising", 5, "clips"):
        wait_for(stream, "recognising: 0 of 5 clips")
    assert "training: 0 of 10" not in stream.getvalue()


def test_time_left_is_by_the_rate_of_this_session(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    made = Phase("training", 100, "steps")
    made.begin_at(50)
    assert made.remaining_s is None
    now = 110.0
    made.advance(60)
    assert made.remaining_s == pytest.approx(40.0)
    made.advance(60, left_s=7.0)
    assert made.remaining_s == 7.0


def test_a_stream_that_was_closed_does_not_stop_the_work():
    stream = io.StringIO()
    with shown(stream=stream), phase("loading"):
        stream.close()
        time.sleep(0.1)
        note("more")


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations(seconds: float, said: str):
    assert duration(seconds) == said


class Gone(Terminal):
    """A terminal that hung up."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")

    def flush(self) -> None:
        raise OSError(5, "Input/output error")


def test_a_terminal_that_is_gone_does_not_stop_the_work():
    with shown(stream=Gone()):
        note("model")
        with phase("training", 3, "steps") as advance:
            time.sleep(0.1)
            advance(3)
        note("more")


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_a_phase_that_is_not_shown_may_still_get_on(stream: io.StringIO):
    early = Phase("early", 3, "steps")
    with progress.running(early), shown(stream=stream), phase("loading"):
        early.advance(2)
        progress.changed(early)
    progress.changed(early)


def test_a_forked_process_shows_nothing_and_waits_for_nobody():
    with shown(stream=io.StringIO()), phase("loading", 2):
        child = os.fork()
        if child == 0:
            with phase("inside", 2) as advance:
                advance(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
