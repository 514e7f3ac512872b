"""A page on this machine alone, with the sound of any number of clips, that keeps choices as they are made.

It listens on 127.0.0.1, and every address begins with a random token, so that no other page in the browser and no other
user of the machine can guess one. A request whose Host is not this server's is refused, for a name that a foreign page
made lead to 127.0.0.1 would otherwise count as the same origin (DNS rebinding). Clips are named by their number in the
page; no part of a request is ever a path.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, cast

from sonotune.errors import ConfigError, ManifestError, ResourceError, SonotuneError
from sonotune.json_files import OBJECT, parse_json
from sonotune.listening.choices import ChoiceLog, Entry, check_entry
from sonotune.listening.page import clip_sound
from sonotune.reports.browser import Browser, build_browser_html
from sonotune.reports.sound import MEDIA_TYPE
from sonotune.types import Clip

HOST: Final = "127.0.0.1"
MAX_REQUEST_BYTES: Final = 256 * 2**10
"""Of a choice or a correction; a transcript of `choices.MAX_TEXT` characters has room."""
_KEPT_SOUNDS: Final = 64
_TIMEOUT_S: Final = 30.0
_RANGE: Final = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(kw_only=True)
class Served:
    """What is served.

    Attributes:
        page: Without entries, which come from the log.
        clips: By number, as the page names them.
        log: Where choices are kept.
        token: Begins every address.
    """

    page: Browser
    clips: Sequence[Clip]
    log: ChoiceLog
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    _sounds: OrderedDict[int, tuple[bytes | None, str]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def html(self) -> bytes:
        """The page as it is now."""
        entries = cast("list[dict[str, Any]]", list(self.log.entries))
        return build_browser_html(replace(self.page, entries=entries)).encode()

    def sound(self, number: int) -> tuple[bytes | None, str]:
        """The sound of a clip, or why there is none; the last ones are kept, for a player asks several times."""
        with self._lock:  # one at a time: a browser asks for many at once
            if number not in self._sounds:
                self._sounds[number] = clip_sound(self.clips[number])
            self._sounds.move_to_end(number)
            while len(self._sounds) > _KEPT_SOUNDS:
                self._sounds.popitem(last=False)
            return self._sounds[number]

    def take(self, body: bytes) -> Entry:
        """Keep a choice, a correction or a revelation.

        Raises:
            ManifestError: It is none of these, or of a clip that is not in the page.
            SonotuneError: It cannot be written.
        """
        value = parse_json(body, OBJECT, where="the request", error=ManifestError, do="Load the page again.")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entry = check_entry({**value, "at": now}, "the request")
        if entry["kind"] != "revealed" and entry["clip"] not in self._ids:
            raise ManifestError("the request is about a clip that is not in the page. Load the page again.")
        self.log.add(entry)
        return entry

    def __post_init__(self) -> None:
        self._ids = {clip.id for clip in self.clips}


def make_server(served: Served, *, port: int = 0) -> ThreadingHTTPServer:
    """Bind a server; `serve_forever` runs it.

    Args:
        served: What it serves.
        port: On 127.0.0.1; 0 takes one that is free.

    Raises:
        ConfigError: The port is taken.
    """

    class Handler(_Handler):
        pass

    Handler.served = served
    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise ConfigError(
            f"port {port} of {HOST} cannot be used: {error.strerror}. Name another with --port."
        ) from error
    server.daemon_threads = True
    return server


def address_of(server: ThreadingHTTPServer, served: Served) -> str:
    """What a browser opens."""
    return f"http://{HOST}:{server.server_port}/{served.token}/"


class _Handler(BaseHTTPRequestHandler):
    """Answers requests for `Served`."""

    served: Served
    protocol_version = "HTTP/1.1"
    server_version = "sonotune"
    sys_version = ""
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        """The page, or a sound."""
        if (rest := self._inside()) is None:
            return
        if rest == "":
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", self.served.html())
        elif (found := re.fullmatch(r"audio/(0|[1-9][0-9]{0,8})", rest)) and int(found[1]) < len(self.served.clips):
            self._send_sound(int(found[1]))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here.")

    do_HEAD = do_GET  # noqa: N815  (a name of the standard library)

    def do_POST(self) -> None:
        """A choice, a correction or a revelation."""
        if (rest := self._inside()) is None:
            return
        length = self.headers.get("Content-Length", "")
        if rest != "entries":
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here.")
        elif self.headers.get_content_type() != "application/json":  # which no form of another page can send
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "only application/json is taken.")
        elif not re.fullmatch(r"[0-9]{1,9}", length):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long it is.")
        elif int(length) > MAX_REQUEST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has at most {MAX_REQUEST_BYTES:,} bytes.")
        else:
            self._keep(self.rfile.read(int(length)))

    def _keep(self, body: bytes) -> None:
        try:
            self.served.take(body)
        except ResourceError as error:
            self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, str(error))
        except ManifestError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except SonotuneError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        else:
            self._answer(HTTPStatus.OK, "application/json", json.dumps({"kept": len(self.served.log.entries)}).encode())

    def _inside(self) -> str | None:
        """The address behind the token; None after a refusal."""
        port = cast("ThreadingHTTPServer", self.server).server_port
        hosts = {f"{name}:{port}" for name in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get_all("Host", []) not in [[host] for host in hosts]:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server answers under its own address only.")
        elif origin is not None and origin not in {f"http://{host}" for host in hosts}:
            self._refuse(HTTPStatus.FORBIDDEN, "another page asks.")
        else:
            start, _, rest = self.path.removeprefix("/").partition("/")
            if secrets.compare_digest(start.encode(), self.served.token.encode()):
                return rest
            self._refuse(HTTPStatus.NOT_FOUND, "there is nothing here.")
        return None

    def _send_sound(self, number: int) -> None:
        sound, problem = self.served.sound(number)
        if sound is None:
            self._refuse(HTTPStatus.NOT_FOUND, problem)
            return
        found = _RANGE.fullmatch(self.headers.get("Range", ""))  # another form is passed over, as RFC 9110 allows
        if found is None:
            self._answer(HTTPStatus.OK, MEDIA_TYPE, sound, {"Accept-Ranges": "bytes"})
            return
        size = len(sound)
        first = int(found[1]) if found[1] else max(0, size - int(found[3]))
        last = min(int(found[2]), size - 1) if found[2] else size - 1
        if first > last or found[3] == "0":
            headers = {"Content-Range": f"bytes */{size}"}
            self._answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "text/plain", b"", headers)
            return
        headers = {"Accept-Ranges": "bytes", "Content-Range": f"bytes {first}-{last}/{size}"}
        self._answer(HTTPStatus.PARTIAL_CONTENT, MEDIA_TYPE, sound[first : last + 1], headers)

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True  # what else the request holds is not read
        self._answer(status, "text/plain; charset=utf-8", why.encode("utf-8", "replace"))

    def _answer(self, status: HTTPStatus, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        try:
            self.send_response(status)
            for name, value in {**_HEADERS, "Content-Type": kind, **(headers or {})}.items():
                self.send_header(name, value)
            if self.close_connection:
                self.send_header("Connection", "close")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):  # a player has what it wants
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to the command."""
