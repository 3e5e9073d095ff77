"""A renderer for the part of Go's text/template that chat templates use, so that they can be tested without Go."""

from __future__ import annotations

import json
import re
from typing import Any

_ACTION = re.compile(r"\{\{(-)?\s*(.*?)\s*(-)?\}\}", re.DOTALL)
_WORD = re.compile(r'"(?:\\.|[^"\\])*"|[^\s]+')


class _Continue(Exception):
    pass


def render(template: str, messages: list[dict[str, str]]) -> str:
    """Render a template with `.Messages`, each with `.Role` and `.Content`."""
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
    dot = {"Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages]}
    _run(tree, dot, {}, out)
    return "".join(out)


def _parse(tokens: list[tuple[str, str]]) -> tuple[list[Any], list[tuple[str, str]]]:
    """Nodes up to an unmatched else or end, and what is left."""
    nodes: list[Any] = []
    while tokens:
        kind, value = tokens[0]
        head = value.split(" ", 1)[0] if kind == "do" else ""
        if head in ("end", "else"):
            return nodes, tokens
        tokens = tokens[1:]
        if head not in ("if", "range"):
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


def _run(nodes: list[Any], dot: Any, names: dict[str, Any], out: list[str]) -> None:
    for node in nodes:
        if node[0] == "text":
            out.append(node[1])
        elif node[0] == "if":
            body = next((body for condition, body in node[1] if _value(condition, dot, names)), node[2])
            _run(body, dot, names, out)
        elif node[0] == "range":
            ((over, body),) = node[1]
            for item in _value(over.rpartition(":=")[2].strip(), dot, names):
                try:
                    _run(body, item, names, out)
                except _Continue:
                    continue
        elif node[1] == "continue":
            raise _Continue
        elif match := re.match(r"(\$\w+)\s*:?=\s*(.*)", node[1], re.DOTALL):
            names[match[1]] = _value(match[2], dot, names)
        else:
            out.append(str(_value(node[1], dot, names)))


def _value(expression: str, dot: Any, names: dict[str, Any]) -> Any:
    words = _WORD.findall(expression)
    values = [_atom(word, dot, names) for word in words[1:]]
    if words[0] == "eq":
        return values[0] == values[1]
    if words[0] == "not":
        return not values[0]
    if words[0] == "printf":
        return values[0] % tuple(values[1:])
    assert len(words) == 1, expression
    return _atom(words[0], dot, names)


def _atom(word: str, dot: Any, names: dict[str, Any]) -> Any:
    if word.startswith('"'):
        return json.loads(word)
    if word.startswith("$"):
        return names[word]
    if word.startswith("."):
        return dot[word[1:]]
    raise ValueError(f"unknown word {word!r}")
