"""A run's report page over HTTP while it trains, with a button that stops and saves it: `qdpo report --serve`.

For one person on one machine. The server listens on loopback alone; a person elsewhere comes by `ssh -L`. Whatever it
answers needs the token of the address that it prints: other users of the machine do not know it, and neither do pages
of other sites that are open in the same browser. Those cannot send it either: it goes in a header of its own, which no
other origin may set, an `Origin` that is not the page's own is refused, and so is a `Host` that is not loopback (a name
that somebody else's DNS points here).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from qdpo.errors import QdpoError, UnavailableError
from qdpo.report import markdown as md
from qdpo.report.facts import Facts, gather
from qdpo.report.page import render_page
from qdpo.run import lock
from qdpo.run.folder import CONFIG, DATA_REPORT, EVALUATION, EXPORT, METRICS, RECORD, SAMPLES, read_record

HOST = "127.0.0.1"
PORT = 8717
"""Where it listens if nobody takes it and nobody wants another."""

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
TOKEN = "X-Qdpo-Token"
WRITTEN = (RECORD, CONFIG, METRICS, SAMPLES, DATA_REPORT, f"{EVALUATION}/*", f"{EXPORT}/*/*.json")
"""The files that a page is made from."""


class Watched:
    """A run that is looked at: its page and its state, made anew when its files have changed.

    Args:
        folder: the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._one_at_a_time = threading.Lock()
        self._kept: tuple[str, str, str] = ("", "", "")

    def page(self) -> str:
        """The report page.

        Raises:
            InputMissingError: a file of the run cannot be understood.
        """
        return self._made()[1]

    def state(self) -> dict[str, Any]:
        """What the page asks for: the version of the files, where the run stands, and whether it can be stopped."""
        version, _, text = self._made()
        state, working = read_record(self.folder).state or "unknown", lock.holder(self.folder)
        can_stop = state == "running" and working is not None and not working.asked and not working.is_elsewhere()
        if state == "running" and working is None:
            state = "ended without a word"
        elif state == "running" and working is not None and working.asked:
            state = "stops after its step"
        return {"version": version, "text": f"{state}: {text}", "can_stop": can_stop}

    def stop(self) -> str:
        """Ask the run to stop, once; returns what to say.

        Raises:
            UnavailableError: there is nothing to stop, or it cannot be done from here.
        """
        state = read_record(self.folder).state
        if state != "running":
            raise UnavailableError(f"the run is not training: it is {state}", "there is nothing to stop")
        if lock.ask_to_stop(self.folder):
            return "asked to stop: the step is finished and saved, then the run stops"
        return "it was asked before: the step is finished and saved, then the run stops"

    def _made(self) -> tuple[str, str, str]:
        """Version, page, and how far the run is."""
        with self._one_at_a_time:
            version = self._version()
            if version != self._kept[0]:
                self._kept = (version, render_page(self.folder, live=True), words(gather(self.folder)))
            return self._kept

    def _version(self) -> str:
        found = []
        for pattern in WRITTEN:
            for path in sorted(self.folder.glob(pattern)):
                status = path.stat()
                found.append((str(path), status.st_mtime_ns, status.st_size))
        return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def words(run: Facts) -> str:
    """How far a run is, in a line."""
    parts = [f"step {run.steps or 0:,} of {run.planned:,}" if run.planned else f"step {run.steps or 0:,}"]
    if run.train:
        parts.append(f"training loss {md.decimal(run.train[-1].get('loss'))}")
    if run.evals:
        last = run.evals[-1]
        accuracy, margin = md.decimal(last.get("rewards/accuracies"), 3), md.decimal(last.get("rewards/margins"), 3)
        parts.append(f"held-out loss {md.decimal(last.get('loss'))}, accuracy {accuracy}, margin {margin}")
    return ", ".join(parts)


class Server(ThreadingHTTPServer):
    """Serves a run on loopback.

    Args:
        folder: the run directory.
        port: None takes `PORT`, or any other when that is taken; 0 any.

    Attributes:
        token: what a request must know.

    Raises:
        InputMissingError: the folder is not a run directory, or a file in it cannot be understood.
        UnavailableError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.watched, self.token = Watched(folder), secrets.token_urlsafe(16)
        self.watched.page()
        try:
            super().__init__((HOST, PORT if port is None else port), Handler)
        except OSError as error:
            if port is not None:
                raise UnavailableError(f"port {port} cannot be used: {error}", "choose another --port") from error
            super().__init__((HOST, 0), Handler)

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{HOST}:{self.server_port}/?token={self.token}"


class Refused(Exception):
    """A request that is not answered; carries the status and the reason."""


class Handler(BaseHTTPRequestHandler):
    """Answers a request."""

    server: Server
    timeout = 20
    server_version, sys_version = "qdpo", ""

    def do_GET(self) -> None:
        """The page, or its state."""
        with self._answered():
            path = urlsplit(self.path).path
            if path == "/":
                self._check(self._query_token())
                return self._send(HTTPStatus.OK, self.server.watched.page(), "text/html")
            self._check(self.headers.get(TOKEN, ""))
            if path != "/state":
                raise Refused(HTTPStatus.NOT_FOUND, "there is only the report here")
            return self._say(HTTPStatus.OK, self.server.watched.state())

    def do_POST(self) -> None:
        """Stop the run."""
        with self._answered():
            self._check(self.headers.get(TOKEN, ""))
            origin = self.headers.get("Origin")
            if origin is not None and urlsplit(origin).netloc != self.headers.get("Host"):
                raise Refused(HTTPStatus.FORBIDDEN, "another page may not stop the run")
            if urlsplit(self.path).path != "/stop":
                raise Refused(HTTPStatus.NOT_FOUND, "there is nothing to do here but stop")
            self._say(HTTPStatus.OK, {"text": self.server.watched.stop()})

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the address of a request holds the token."""

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Refusals and errors as answers."""
        try:
            yield
        except Refused as refused:
            status, reason = refused.args
            self._say(status, {"text": reason})
        except UnavailableError as error:
            self._say(HTTPStatus.CONFLICT, {"text": f"{error.message}; {error.hint}"})
        except (QdpoError, OSError) as error:
            # a run that is written to at this moment is whole again at the next look
            self._say(HTTPStatus.SERVICE_UNAVAILABLE, {"text": md.without_folders(error)})

    def _query_token(self) -> str:
        return (parse_qs(urlsplit(self.path).query).get("token") or [""])[0]

    def _check(self, token: str) -> None:
        """Refuse who does not know the token, and who comes by a name that is not this machine's own."""
        name = self.headers.get("Host", "")
        if name.rpartition(":")[0] not in LOOPBACK and name not in LOOPBACK:
            raise Refused(HTTPStatus.FORBIDDEN, "this server answers under loopback names alone")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "open the address that qdpo report --serve printed, token included")

    def _say(self, status: HTTPStatus, values: dict[str, Any]) -> None:
        self._send(status, json.dumps(values), "application/json")

    def _send(self, status: HTTPStatus, text: str, kind: str) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": "frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
