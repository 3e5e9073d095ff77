"""A server on loopback, served in a thread and asked as a browser would ask it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qdpo import loopback


@contextmanager
def in_a_thread(server: loopback.Server) -> Iterator[None]:
    """Serve while the block runs."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield
    server.shutdown()
    thread.join()


def ask(
    server: loopback.Server, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of an answer; a body that is no text is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    sent = body if body is None or isinstance(body, str | bytes) else json.dumps(body)
    connection.request(method, path, sent, {key.replace("_", "-"): value for key, value in headers.items()})
    found = connection.getresponse()
    text = found.read().decode()
    connection.close()
    return found.status, text, {key.lower(): value for key, value in found.getheaders()}


def known(server: loopback.Server) -> dict[str, str]:
    """The header of who knows the token."""
    return {loopback.TOKEN.replace("-", "_"): server.token}
