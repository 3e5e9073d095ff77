"""A page for one person on one machine: how the browser is told of it, and who is not answered.

`tests/report/test_serve.py` and `tests/pairing/test_serve.py` ask the two servers that there are.
"""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from qdpo import loopback
from qdpo.errors import UnavailableError, UsageError
from qdpo.loopback import Handler, Server, check_port, in_browser


class Page(Handler):
    def do_GET(self) -> None:
        with self.answered():
            self.check_address()
            self.send(HTTPStatus.OK, "page", "text/plain")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(Page, 0, 8719) as server:
        yield server


def test_the_browser_is_told_by_a_file_of_its_user_alone(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setenv("DISPLAY", ":0")
    with in_browser(server, wanted=True):
        (uri,) = opened
        # a command line shows the token to every user of the machine
        assert server.token not in uri
        way = Path(unquote(urlsplit(uri).path))
        assert server.address in way.read_text()
        assert stat.S_IMODE(way.parent.stat().st_mode) == 0o700
    assert not way.exists()


def test_no_browser_where_none_is_wanted_or_nobody_looks(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webbrowser.open", lambda uri: pytest.fail("opened"))
    monkeypatch.setenv("DISPLAY", ":0")
    with in_browser(server, wanted=False):
        pass
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with in_browser(server, wanted=True):
        pass


def test_ports(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    check_port(None)
    check_port(0)
    for port in (-1, 65536):
        with pytest.raises(UsageError):
            check_port(port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match="cannot be used"):
            Server(Page, port, 8719)
        # where it listens if nobody wants another, it takes any that is free
        with Server(Page, None, port) as other:
            assert other.server_port != port
    assert server.server_address[0] == loopback.HOST


def test_a_page_that_was_closed_is_not_spoken_of(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for error, said in ((BrokenPipeError(), False), (ConnectionResetError(), False), (ValueError("odd"), True)):
        try:
            raise error
        except Exception:
            server.handle_error(None, ("127.0.0.1", 1))
        assert ("Traceback" in capsys.readouterr().err) == said
