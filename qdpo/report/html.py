"""HTML from Python in which every text is escaped: only what this module makes is markup."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from qdpo.report import markdown as md


class Markup(str):
    """Text that is HTML already."""


def tag(name: str, *children: str, **attributes: str) -> Markup:
    """An element; children that are no `Markup` are escaped. `class_` stands for `class`, `_` in names for `-`."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{given}>{''.join(map(escaped, children))}</{name}>")


def escaped(value: str) -> Markup:
    """The text as HTML, freed of control characters and access tokens."""
    return value if isinstance(value, Markup) else Markup(html.escape(md.printable(value)))


def joined(*parts: str) -> Markup:
    """Several pieces, one a line."""
    return Markup("\n".join(escaped(part) for part in parts if part))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: bool = False) -> Markup:
    """A table that scrolls by itself on a narrow screen.

    Args:
        header: titles of the columns; empty for none.
        rows: cells.
        words: align every column left, for texts; numbers stand right.
    """
    head = [tag("thead", tag("tr", *(tag("th", title, scope="col") for title in header)))] if header else []
    body = tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows))
    return tag("div", tag("table", *head, body, **({"class_": "words"} if words else {})), class_="scroll")


def items(lines: Sequence[str]) -> Markup:
    """A list."""
    return tag("ul", *(tag("li", line) for line in lines)) if lines else Markup("")


def json_data(value: Any, id: str) -> Markup:
    """Data for a script; nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{html.escape(id)}">{text}</script>')
