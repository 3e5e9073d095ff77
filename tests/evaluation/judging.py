"""A server on loopback that judges answers as a test wants it to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Says = Callable[[str, str, str], str]
"""What a judge says of a prompt and two answers."""


@contextmanager
def serving(says: Says, status: int = 200, seen: list[dict[str, Any]] | None = None) -> Iterator[str]:
    """A server on loopback with OpenAI's protocol, and its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({"data": [{"id": "a-model"}]} if self.path == "/v1/models" else {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if seen is not None:
                seen.append({**body, "authorization": self.headers.get("Authorization"), "path": self.path})
            self.reply({"choices": [{"message": {"content": says(*parts(body))}}]})

        def reply(self, value: Any) -> None:
            text = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def parts(body: dict[str, Any]) -> list[str]:
    """Prompt and both answers of a request."""
    sections = body["messages"][1]["content"].split("\n\n")
    return [section.partition("]\n")[2] for section in sections[:3]]


def prefer_good(prompt: str, first: str, second: str) -> str:
    """For the answer that calls itself good."""
    return "C" if first == second else "A" if "good" in first else "B" if "good" in second else "C"
