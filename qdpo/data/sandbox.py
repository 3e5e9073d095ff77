"""The program that renders chat templates in a process of its own; run as a script, by `qdpo.data.renderer`.

A template is a program that came with a model. Here it runs in Jinja's immutable sandbox, without the files and names
of qdpo, with a limit on memory; the parent kills it when one conversation takes too long. The environment is the one
of transformers' `apply_chat_template`, so that both give the same text.

It talks over the connection whose file descriptor is its argument. Messages in are JSON: first {template, variables,
memory, characters}, then lists of jobs [prompt, completion, ...]. For each job it answers with the texts of the prompt
and of prompt + each completion, one message each: 1 byte (`+` text, `-` error, `!` the template itself is at fault),
then UTF-8.
"""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import datetime
from multiprocessing.connection import Connection
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant says; the text is the same without the mark."""

    tags = {"generation"}  # noqa: RUF012 (the base class has a set)

    def parse(self, parser: Any) -> Any:
        """The block's body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class TooLong(Exception):
    """The text is over the limit."""


def environment() -> ImmutableSandboxedEnvironment:
    """The sandbox, with what transformers offers to templates."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return env


def limit_memory(size: int) -> None:
    """Let this process have `size` bytes, where the system can say so."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def render(template: jinja2.Template, messages: list[Any], start: bool, variables: dict[str, str], limit: int) -> str:
    """One conversation as text of at most `limit` characters."""
    parts, size = [], 0
    for part in template.generate(
        messages=messages, tools=None, documents=None, add_generation_prompt=start, **variables
    ):
        size += len(part)
        if size > limit:
            raise TooLong
        parts.append(part)
    return "".join(parts)


def main() -> None:
    """Serve until the parent goes away."""
    pipe = Connection(int(sys.argv[1]))

    def send(mark: str, text: str) -> None:
        pipe.send_bytes(f"{mark}{text}".encode("utf-8", "surrogatepass"))

    setup = json.loads(pipe.recv_bytes())
    limit_memory(setup["memory"])
    limit, variables = setup["characters"], setup["variables"]
    try:
        template = environment().from_string(setup["template"])
    except jinja2.TemplateSyntaxError as error:
        return send("!", f"line {error.lineno}: {error.message}")
    except Exception as error:
        return send("!", f"{type(error).__name__}: {error}")
    send("+", "")
    while True:
        for prompt, *completions in json.loads(pipe.recv_bytes()):
            for messages, start in [(prompt, True), *((prompt + said, False) for said in completions)]:
                try:
                    send("+", render(template, messages, start, variables, limit))
                except TooLong:
                    send("-", f"its text is longer than {limit:,} characters")
                except MemoryError:
                    send("-", "it needs more memory than a template may have")
                except Exception as error:
                    send("-", " ".join(str(error).split())[:300] or type(error).__name__)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, OSError):  # the parent has gone away
        main()
