"""llama-server renders the chat template that a GGUF carries: text and tokens are those of the training.

Needs the server: `QDPO_LLAMA_SERVER` names the program (CONTRIBUTING.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from export import families, toys
from export.test_ollama import CONVERSATIONS, REAL, jinja, with_template
from export.toys_gguf import make_run
from materials import llama_cpp

from qdpo.data.template import NAMED
from qdpo.export.formats import Request
from qdpo.export.gguf.format import write_gguf
from qdpo.export.source import load_run

SECONDS = 60.0

Ask = Callable[[str, dict[str, Any]], dict[str, Any]]


@contextlib.contextmanager
def served(model: Path) -> Iterator[Ask]:
    """llama-server with a file, on a port of this machine; a function that asks it."""
    program = os.environ.get("QDPO_LLAMA_SERVER")
    if not program:
        pytest.skip("QDPO_LLAMA_SERVER does not name a llama-server (CONTRIBUTING.md)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "-m", model, "--host", "127.0.0.1", "--port", str(port), "-c", "256", "-t", "1", "--no-warmup"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet) as process:
        try:

            def ask(path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port}{path}",
                    None if body is None else json.dumps(body).encode(),
                    {"Content-Type": "application/json"},
                )
                with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                    found: dict[str, Any] = json.load(answer)
                return found

            until = time.monotonic() + SECONDS
            while True:
                with contextlib.suppress(OSError):
                    ask("/health")
                    break
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.05)
            yield ask
        finally:
            process.kill()


def of_gguf(folder: Path, template: str) -> Path:
    """A GGUF that carries a template."""
    run = make_run(folder, families.config("llama", num_hidden_layers=1))
    with_template(template).save_pretrained(run / "adapter")
    out = write_gguf(Request(load_run(run), run / "export" / "gguf", "original", quants=("f16",)))
    return next(out.glob("*.gguf"))


ODD = [{"role": "user", "content": '{{ x }} {% if %} "q" <b>&amp; é 😀 \\n'}]

# What the server says for itself, and the training does not: whether the model thinks, and which day it is.
AS_TRAINED = {"chat_template_kwargs": {"enable_thinking": False, "date_string": "26 Jul 2024"}}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMED, *REAL])
def test_text_and_tokens_are_those_of_the_training(tmp_path: Path, name: str) -> None:
    template = NAMED.get(name) or llama_cpp(f"templates/{name}.jinja").read_text()
    tokenizer = toys.byte_tokenizer()
    with served(of_gguf(tmp_path, template)) as ask:
        for messages in (*CONVERSATIONS.values(), ODD):
            expected = jinja(template, messages)
            prompt = ask("/apply-template", {"messages": messages, **AS_TRAINED})["prompt"]
            assert prompt == expected
            tokens = ask("/tokenize", {"content": prompt, "parse_special": True})["tokens"]
            assert tokens == tokenizer.encode(expected, add_special_tokens=False)


@pytest.mark.slow
def test_the_server_thinks_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    """Why `AS_TRAINED` says so: the training renders such a template without the switch."""
    template = NAMED["chatml"] + "{{ '<think>' if enable_thinking is defined and enable_thinking }}"
    messages = CONVERSATIONS["user"]
    with served(of_gguf(tmp_path, template)) as ask:
        assert ask("/apply-template", {"messages": messages})["prompt"] == jinja(template, messages) + "<think>"
        assert ask("/apply-template", {"messages": messages, **AS_TRAINED})["prompt"] == jinja(template, messages)
