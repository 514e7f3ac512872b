"""The server: on this machine alone, behind a token, with ranges, without paths, and keeping what it is sent."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sonotune.errors import ConfigError
from sonotune.listening.choices import ChoiceLog, Session, read_choices
from sonotune.listening.page import comparison_page, served_sound
from sonotune.listening.server import HOST, MAX_REQUEST_BYTES, Served, make_server
from sonotune.listening.trials import make_trials
from sonotune.listening.utterances import read_systems

Ask = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture
def served(tmp_path: Path, systems: Callable[..., tuple[Path, Path, Path]]) -> Iterator[tuple[Served, int]]:
    texts = [f"{word} two" for word in ("one", "three", "four", "שלוש")]
    manifest, first, second = systems(tmp_path, texts, texts, [text.split()[0] for text in texts])
    (tmp_path / "secret.txt").write_text("secret")
    found = read_systems([first, second], manifest=str(manifest))
    session = Session(mode="blind", seed=0, form="written", clips=None, random=None, files=found.digests)
    trials = make_trials(found.utterances, seed=0, form="written")
    made = Served(
        page=comparison_page(found, trials, session, sound=served_sound, served=True),
        clips=[trial.utterance.clip for trial in trials],
        log=ChoiceLog(path=tmp_path / "choices.jsonl", session=session),
    )
    with make_server(made) as server:
        assert server.server_address[0] == "127.0.0.1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield made, server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def ask(served: tuple[Served, int]) -> Ask:
    """Sends a request as it is given: method, path behind the token -> status, headers, body."""
    made, port = served

    def send(
        method: str, rest: str = "", body: bytes | None = None, *, path: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(HOST, port, timeout=10)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path or f"/{made.token}/{rest}", skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": f"{HOST}:{port}", **given}.items():
            connection.putheader(name, value)
        if body is not None and "Content-Length" not in given:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        result = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return result

    return send


def test_the_page_and_its_sounds_are_there(served: tuple[Served, int], ask: Ask):
    status, headers, body = ask("GET")
    assert status == 200
    assert b"audio/0" in body
    assert str(served[0].clips[0].path).encode() not in body
    assert headers["x-frame-options"] == "DENY"
    assert headers["cache-control"] == "no-store"
    assert "connect-src &#39;self&#39;" in body.decode()
    status, headers, sound = ask("GET", "audio/0")
    assert (status, headers["content-type"], headers["accept-ranges"]) == (200, "audio/mpeg", "bytes")
    assert ask("HEAD", "audio/0")[1]["content-length"] == str(len(sound))
    assert ask("HEAD", "audio/0")[2] == b""


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-99", 0, 99), ("bytes=100-", 100, None), ("bytes=-50", -50, None), ("bytes=10-999999999", 10, None)],
)
def test_ranges_are_parts_of_the_sound(ask: Ask, asked: str, first: int, last: int | None):
    whole = ask("GET", "audio/1")[2]
    status, headers, part = ask("GET", "audio/1", Range=asked)
    assert status == 206
    assert part == whole[first : None if last is None else last + 1]
    begin = first % len(whole)
    assert headers["content-range"] == f"bytes {begin}-{begin + len(part) - 1}/{len(whole)}"


def test_ranges_outside_and_of_other_forms(ask: Ask):
    whole = ask("GET", "audio/1")[2]
    for asked in (f"bytes={len(whole)}-", "bytes=9-3", "bytes=-0"):
        status, headers, body = ask("GET", "audio/1", Range=asked)
        assert (status, headers["content-range"], body) == (416, f"bytes */{len(whole)}", b"")
    for asked in ("bytes=0-1,4-5", "lines=0-1", "bytes=a-b", "bytes="):
        assert ask("GET", "audio/1", Range=asked)[::2] == (200, whole)


@pytest.mark.parametrize(
    "rest",
    [
        *("audio/4", "audio/-1", "audio/00", "audio/1e0", "audio/", "audio", "secret.txt", "../secret.txt"),
        *("audio/../secret.txt", "audio/..%2fsecret.txt", "audio/%2e%2e/%2e%2e/secret.txt", "/etc/passwd", "audio//0"),
        *("audio/0/../../secret.txt", "..\\secret.txt", "audio/0?x", "tone.wav", "entries"),
    ],
)
def test_only_numbers_of_clips_lead_anywhere(served: tuple[Served, int], ask: Ask, rest: str):
    status, _, body = ask("GET", path=f"/{served[0].token}/{rest}")
    assert status == 404
    assert body == b"there is nothing here."


def test_without_the_token_there_is_nothing(served: tuple[Served, int], ask: Ask):
    for path in ("/", "/audio/0", "/x/audio/0", f"/{served[0].token[:-1]}/", "//", f"/{served[0].token}x/", "*"):
        assert ask("GET", path=path)[0] == 404
    assert len(served[0].token) >= 32


def test_other_hosts_and_pages_are_refused(served: tuple[Served, int], ask: Ask):
    port = served[1]
    for host in ("evil.example", f"evil.example:{port}", HOST, f"{HOST}:{port + 1}", ""):
        assert ask("GET", Host=host)[0] == 421
    assert ask("GET", Host=f"localhost:{port}")[0] == 200
    body = json.dumps({"kind": "choice", "clip": "c0", "choice": "left", "listener": "x"}).encode()
    for origin, status in (("http://evil.example", 403), ("null", 403), (f"http://{HOST}:{port}", 200)):
        assert ask("POST", "entries", body, Origin=origin, Content_Type="application/json")[0] == status
    with socket.create_connection((HOST, port), timeout=5) as raw:  # two hosts, and none
        raw.sendall(f"GET /{served[0].token}/ HTTP/1.1\r\nHost: {HOST}:{port}\r\nHost: evil\r\n\r\n".encode())
        assert b"421" in raw.recv(100)


def test_choices_are_kept_with_the_time_of_the_server(served: tuple[Served, int], ask: Ask):
    sent: dict[str, Any] = {"kind": "choice", "clip": "c3", "choice": "same", "listener": "דנה", "at": "yesterday"}
    status, _, body = ask("POST", "entries", json.dumps(sent).encode(), Content_Type="application/json")
    assert (status, json.loads(body)) == (200, {"kept": 1})
    entry = read_choices(served[0].log.path)[1][0]
    assert {**entry, "at": ""} == {**sent, "at": ""}
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", entry["at"])
    assert '"choice":"same"' in ask("GET")[2].decode()  # whoever loads the page again goes on


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"\xff", {}, 400),
        (b"[" * 200 + b"]" * 200, {}, 400),
        (b'{"kind": "choice", "clip": "c99", "choice": "left", "listener": "x"}', {}, 400),
        (b'{"kind": "choice", "clip": "../c0", "choice": "left", "listener": "x"}', {}, 400),
        (b'{"kind": "session"}', {}, 400),
        (b"{}", {"Content_Type": "text/plain"}, 415),
        (b"{}", {"Content_Type": "application/x-www-form-urlencoded"}, 415),
        (b"{}", {"Content_Length": "many"}, 411),
        (b"{}", {"Content_Length": str(MAX_REQUEST_BYTES + 1)}, 413),
    ],
)
def test_what_is_no_choice_is_refused(
    served: tuple[Served, int], ask: Ask, body: bytes, headers: dict[str, str], status: int
):
    before = served[0].log.path.read_bytes()
    assert ask("POST", "entries", body, **{"Content_Type": "application/json", **headers})[0] == status
    assert served[0].log.path.read_bytes() == before
    assert ask("GET")[0] == 200


def test_a_clip_that_is_gone_is_said_and_the_others_play(served: tuple[Served, int], ask: Ask):
    served[0].clips[0].path.rename(served[0].clips[0].path.with_name("moved.wav"))
    status, _, body = ask("GET", "audio/2")
    assert status == 404
    assert b"tone.wav" in body


def test_a_port_that_is_taken_is_said(served: tuple[Served, int]):
    with pytest.raises(ConfigError, match=f"port {served[1]} of 127.0.0.1 cannot be used"):
        make_server(served[0], port=served[1])
