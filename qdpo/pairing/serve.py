"""The page on which answers are compared: `qdpo pairs vote`. Who is answered, `qdpo.loopback` decides."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http import HTTPStatus
from importlib.resources import files as resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from qdpo import loopback
from qdpo.errors import UnavailableError, UsageError
from qdpo.loopback import Refused
from qdpo.pairing.poll import Poll

PORT = 8718
"""Where it listens if nobody takes it and nobody wants another."""
LONGEST = 4 << 20
"""Bytes of a request: an edited answer is one."""


def page() -> tuple[str, str]:
    """The page, and the policy under which a browser runs its own script and style and nothing else."""
    html, style, script = (_asset(f"vote.{kind}") for kind in ("html", "css", "js"))
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.replace("/*STYLE*/", style).replace("/*SCRIPT*/", script), policy


def _asset(name: str) -> str:
    return (resources("qdpo") / "pairing" / "web" / name).read_text("utf-8")


def _digest(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


class Server(loopback.Server):
    """Serves the comparisons of a poll on loopback.

    Args:
        poll: what is voted on.
        port: None takes `PORT`, or any other when that is taken; 0 any.

    Raises:
        UnavailableError: the port is taken.
    """

    def __init__(self, poll: Poll, port: int | None = None) -> None:
        self.poll, self.page = poll, page()
        super().__init__(Handler, port, PORT)


class Handler(loopback.Handler):
    """Answers a request."""

    server: Server
    command_of_server = "qdpo pairs vote"

    def do_GET(self) -> None:
        """The page, or what it shows."""
        with self.answered():
            if self.place == "/":
                self.check_address()
                html, policy = self.server.page
                return self.send(HTTPStatus.OK, html, "text/html", policy)
            self.check_header()
            if self.place != "/state":
                raise Refused(HTTPStatus.NOT_FOUND, "there is only the voting here")
            after = parse_qs(urlsplit(self.path).query).get("after")
            return self.say(HTTPStatus.OK, self.server.poll.state(after[0] if after else None))

    def do_POST(self) -> None:
        """A vote, or one that is taken back, or the end."""
        with self.answered():
            self.check_header()
            said = self._said()
            if self.place == "/finish":
                self.say(HTTPStatus.OK, {"said": "Finished."})
                # from another thread: it waits until no request is being answered
                threading.Thread(target=self.server.shutdown, daemon=True).start()
                return
            if self.place not in ("/vote", "/undo"):
                raise Refused(HTTPStatus.NOT_FOUND, "there is only vote, undo and finish here")
            try:
                self.say(HTTPStatus.OK, self._done(said))
            except UsageError as error:
                raise Refused(HTTPStatus.BAD_REQUEST, error.message) from None
            except UnavailableError as error:
                self.say(HTTPStatus.CONFLICT, {**self.server.poll.state(), "text": f"{error.message}; {error.hint}"})

    def _done(self, said: dict[str, Any]) -> dict[str, Any]:
        name, edited = str(said.get("comparison", "")), said.get("edited")
        if self.place == "/undo":
            return self.server.poll.undo(name)
        return self.server.poll.vote(name, str(said.get("vote", "")), None if edited is None else str(edited))

    def _said(self) -> dict[str, Any]:
        """The JSON object of a request."""
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > LONGEST:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"an edit has at most {LONGEST:,} bytes")
        try:
            said = json.loads(self.rfile.read(int(length)) or b"{}")
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "the request is not a JSON object")
        return said
