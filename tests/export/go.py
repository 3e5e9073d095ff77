"""Renders chat templates as Ollama does: by Go itself where it is installed (`ollama/main.go`), else by a stand-in.

The stand-in knows the part of Go's text/template that chat templates use; where Go is, a test holds the two together.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parent / "ollama" / "main.go"


def render(template: str, messages: list[dict[str, str]]) -> str:
    """Render a template for a conversation.

    Raises:
        ValueError: the template is none, or fails.
    """
    return render_all([(template, messages)])[0] if has_go() else stand_in(template, messages)


def has_go() -> bool:
    """Whether Go is installed."""
    return shutil.which("go") is not None


def render_all(jobs: Sequence[tuple[str, list[dict[str, str]]]]) -> list[str]:
    """Render templates for conversations, by Go.

    Raises:
        ValueError: a template is none, or fails.
    """
    asked = json.dumps([{"template": template, "messages": messages} for template, messages in jobs])
    answers = json.loads(subprocess.run([_program()], input=asked, capture_output=True, text=True, check=True).stdout)
    if failed := [answer["error"] for answer in answers if answer.get("error")]:
        raise ValueError("; ".join(failed))
    return [answer["text"] for answer in answers]


@cache
def _program() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="qdpo-go-"))
    subprocess.run(["go", "build", "-o", folder / "render", SOURCE], check=True, cwd=folder)
    return folder / "render"


_ACTION = re.compile(r"\{\{(-)?\s*(.*?)\s*(-)?\}\}", re.DOTALL)
_WORD = re.compile(r'"(?:\\.|[^"\\])*"|[()]|[^\s()]+')


class _Continue(Exception):
    pass


def stand_in(template: str, messages: list[dict[str, str]]) -> str:
    """Render a template with `.Messages`, each with `.Role` and `.Content`, and `.System`, collated as Ollama does."""
    tokens, position = [], 0
    for match in _ACTION.finditer(template):
        text = template[position : match.start()]
        tokens.append(("text", text.rstrip() if match[1] else text))
        if position and template[position - 3] == "-":
            tokens[-1] = ("text", tokens[-1][1].lstrip())
        tokens.append(("do", match[2]))
        position = match.end()
    rest = template[position:]
    tokens.append(("text", rest.lstrip() if template[position - 3] == "-" else rest))
    tree, left = _parse(tokens)
    assert not left
    out: list[str] = []
    dot = _collated(messages)
    _run(tree, dot, {"$": dot}, {}, out)
    return "".join(out)


def _collated(messages: list[dict[str, str]]) -> dict[str, Any]:
    joined: list[dict[str, str]] = []
    for message in messages:
        if joined and joined[-1]["Role"] == message["role"]:
            joined[-1]["Content"] += "\n\n" + message["content"]
        else:
            joined.append({"Role": message["role"], "Content": message["content"]})
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    return {"Messages": joined, "System": system}


def _parse(tokens: list[tuple[str, str]]) -> tuple[list[Any], list[tuple[str, str]]]:
    """Nodes up to an unmatched else or end, and what is left."""
    nodes: list[Any] = []
    while tokens:
        kind, value = tokens[0]
        head = value.split(" ", 1)[0] if kind == "do" else ""
        if head in ("end", "else"):
            return nodes, tokens
        tokens = tokens[1:]
        if head not in ("if", "range", "define"):
            nodes.append((kind, value))
            continue
        branches, otherwise = [], []
        body, tokens = _parse(tokens)
        branches.append((value.split(" ", 1)[1], body))
        while tokens[0][1].startswith("else if "):
            condition = tokens[0][1].removeprefix("else if ")
            body, tokens = _parse(tokens[1:])
            branches.append((condition, body))
        if tokens[0][1] == "else":
            otherwise, tokens = _parse(tokens[1:])
        assert tokens[0][1] == "end", tokens[0]
        tokens = tokens[1:]
        nodes.append((head, branches, otherwise))
    return nodes, tokens


def _run(nodes: list[Any], dot: Any, names: dict[str, Any], defined: dict[str, Any], out: list[str]) -> None:
    for node in nodes:
        if node[0] == "text":
            out.append(node[1])
        elif node[0] == "define":
            ((name, body),) = node[1]
            defined[json.loads(name)] = body
        elif node[0] == "if":
            body = next((body for condition, body in node[1] if _value(condition, dot, names)), node[2])
            _run(body, dot, names, defined, out)
        elif node[0] == "range":
            ((over, body),) = node[1]
            variables, _, over = over.rpartition(":=")
            for number, item in enumerate(_value(over.strip(), dot, names)):
                names |= dict(zip((name.strip() for name in variables.split(",")), (number, item), strict=False))
                try:
                    _run(body, item, names, defined, out)
                except _Continue:
                    continue
        elif node[1] == "continue":
            raise _Continue
        elif match := re.fullmatch(r'template "(\w+)" (.*)', node[1]):
            within = _value(match[2], dot, names)
            _run(defined[match[1]], within, {"$": within}, defined, out)
        elif match := re.match(r"(\$\w+)\s*:?=\s*(.*)", node[1], re.DOTALL):
            names[match[1]] = _value(match[2], dot, names)
        else:
            out.append(str(_value(node[1], dot, names)))


FUNCTIONS: dict[str, Any] = {
    "eq": lambda one, *others: one in others,
    "not": lambda value: not value,
    "and": lambda *values: next((value for value in values if not value), values[-1]),
    "printf": lambda form, *values: form % values,
    "len": len,
    "slice": lambda value, start, end=None: value[start:end],
    "currentDate": lambda: date.today().isoformat(),
}


def _value(expression: str, dot: Any, names: dict[str, Any]) -> Any:
    words = _WORD.findall(expression)
    value, left = _call(words, dot, names)
    assert not left, expression
    return value


def _call(words: list[str], dot: Any, names: dict[str, Any]) -> tuple[Any, list[str]]:
    """The value of a call, or of one operand, up to a closing bracket."""
    head, words = words[0], words[1:]
    if head == "(":
        value, words = _call(words, dot, names)
        return value, words[1:]
    if head not in FUNCTIONS:
        return _atom(head, dot, names), words
    values = []
    while words and words[0] != ")":
        if words[0] == "(":
            value, words = _call(words, dot, names)
        else:
            value = FUNCTIONS[words[0]]() if words[0] in FUNCTIONS else _atom(words[0], dot, names)
            words = words[1:]
        values.append(value)
    return FUNCTIONS[head](*values), words


def _atom(word: str, dot: Any, names: dict[str, Any]) -> Any:
    if word.startswith('"'):
        return json.loads(word.replace("\\v", "\\u000b"))
    if word.isdigit():
        return int(word)
    if word.startswith("$"):
        name, _, field = word.partition(".")
        return names[name][field] if field else names[name]
    if word.startswith("."):
        return dot[word[1:]] if len(word) > 1 else dot
    raise ValueError(f"unknown word {word!r}")
