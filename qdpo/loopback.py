"""A page for one person on one machine, over HTTP: what protects it from everybody else.

The server listens on loopback alone; a person elsewhere comes by `ssh -L`. Whatever it answers needs the token of the
address that it prints: other users of the machine do not know it, and neither do pages of other sites that are open in
the same browser. Those cannot send it either: it goes in a header of its own, which no other origin may set, an
`Origin` that is not the page's own is refused, and so is a `Host` that is not loopback (a name that somebody else's DNS
points here).
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import sys
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from qdpo.errors import QdpoError, UnavailableError, UsageError

HOST = "127.0.0.1"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
TOKEN = "X-Qdpo-Token"


def check_port(port: int | None) -> None:
    """Refuse what is no port.

    Raises:
        UsageError: it is none.
    """
    if port is not None and not 0 <= port <= 65535:
        raise UsageError(f"--port {port} is no port", "0 to 65535; 0 takes any that is free")


class Server(ThreadingHTTPServer):
    """Listens on loopback.

    Args:
        handler: answers requests.
        port: None takes `usual`, or any other when that is taken; 0 any.
        usual: where it listens if nobody wants another.

    Attributes:
        token: what a request must know.

    Raises:
        UnavailableError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, handler: type[Handler], port: int | None, usual: int) -> None:
        self.token = secrets.token_urlsafe(16)
        try:
            super().__init__((HOST, usual if port is None else port), handler)
        except OSError as error:
            if port is not None:
                raise UnavailableError(f"port {port} cannot be used: {error}", "choose another --port") from error
            super().__init__((HOST, 0), handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a page that was closed before its answer came."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{HOST}:{self.server_port}/?token={self.token}"

    @property
    def from_elsewhere(self) -> str:
        """How a person on another machine sees the page."""
        port = self.server_port
        return f"from another machine: ssh -L {port}:{HOST}:{port} THIS_MACHINE, then open that address there"


class Refused(Exception):
    """A request that is not answered; carries the status and the reason."""


class Handler(BaseHTTPRequestHandler):
    """Answers a request; what is answered is the subclass's."""

    command_of_server = "the command"
    """What printed the address, for who comes without it."""
    timeout = 20
    server_version, sys_version = "qdpo", ""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the address of a request holds the token."""

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Refusals and errors as answers."""
        try:
            yield
        except Refused as refused:
            status, reason = refused.args
            self.say(status, {"text": reason})
        except ConnectionError:
            raise  # there is nobody to answer
        except UnavailableError as error:
            self.say(HTTPStatus.CONFLICT, {"text": f"{error.message}; {error.hint}"})
        except (QdpoError, OSError) as error:
            self.say(HTTPStatus.SERVICE_UNAVAILABLE, {"text": self.words(error)})

    def words(self, error: QdpoError | OSError) -> str:
        """What the page is told of an error."""
        return str(error)

    @property
    def place(self) -> str:
        """The path that is asked for."""
        return urlsplit(self.path).path

    def check_address(self) -> None:
        """Refuse a request for the page whose address has not the token."""
        self._check((parse_qs(urlsplit(self.path).query).get("token") or [""])[0])

    def check_header(self) -> None:
        """Refuse a request of the page's script that has not the token, and one that another page makes."""
        self._check(self.headers.get(TOKEN, ""))
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != self.headers.get("Host"):
            raise Refused(HTTPStatus.FORBIDDEN, "another page may not do this")

    def _check(self, token: str) -> None:
        """Refuse who does not know the token, and who comes by a name that is not this machine's own."""
        server = self.server
        assert isinstance(server, Server)
        name = self.headers.get("Host", "")
        if name.rpartition(":")[0] not in LOOPBACK and name not in LOOPBACK:
            raise Refused(HTTPStatus.FORBIDDEN, "this server answers under loopback names alone")
        if not hmac.compare_digest(token.encode(), server.token.encode()):
            raise Refused(
                HTTPStatus.FORBIDDEN, f"open the address that {self.command_of_server} printed, token included"
            )

    def say(self, status: HTTPStatus, values: dict[str, Any]) -> None:
        """Answer with JSON."""
        self.send(status, json.dumps(values), "application/json")

    def send(self, status: HTTPStatus, text: str, kind: str, policy: str = "frame-ancestors 'none'") -> None:
        """Answer with a text.

        Args:
            status: of the answer.
            text: its body.
            kind: its media type.
            policy: what the page may do.
        """
        body = text.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def in_browser(server: Server, wanted: bool) -> Iterator[None]:
    """Open the page in the user's browser, where there is a screen.

    The browser is given a file that only its user may read and that leads to the page: an address on its command line
    would show the token to every user of the machine.

    Args:
        server: serves the page.
        wanted: False opens none.
    """
    if not wanted or not (sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="qdpo-") as folder:  # for its owner alone
        way = Path(folder) / "page.html"
        way.write_text(f'<!doctype html><meta http-equiv="refresh" content="0;url={server.address}">\n', "utf-8")
        with contextlib.suppress(webbrowser.Error):
            webbrowser.open(way.as_uri())
        yield
