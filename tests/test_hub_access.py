"""A hub that does not answer is given up within seconds, whatever its client would do."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from sonotune import hub_access
from sonotune.errors import ModelError
from sonotune.hub_access import why_unreachable
from sonotune.models.checkpoints import read_config


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield use(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}")


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> str:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_access, "TIMEOUT_S", 0.5)
    return endpoint


def test_a_hub_that_is_silent_is_given_up_and_not_asked_again(silent: str):
    began = time.monotonic()
    reason = why_unreachable()
    assert time.monotonic() - began < 5
    assert reason is not None
    assert reason.startswith(f"{silent} cannot be reached (")
    assert constants.HF_HUB_OFFLINE  # so that its client does not try for itself
    with pytest.raises(ModelError, match="no copy of it is on this machine") as caught:
        read_config("nobody/nothing", None)
    assert silent in str(caught.value)


def test_a_hub_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch):
    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        use(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        try:
            assert why_unreachable() is None
        finally:
            server.shutdown()
            thread.join()
    assert not constants.HF_HUB_OFFLINE


def test_offline_by_its_own_variable_asks_nobody(monkeypatch: pytest.MonkeyPatch, silent: str):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert why_unreachable() == "HF_HUB_OFFLINE is set"
