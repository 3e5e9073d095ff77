"""Text and numbers of a run as they may be shown: escaped, on one line, without access tokens and without folders.

Names, reasons and notes come from people and from data. Whatever they hold, Markdown stays what it is meant to be, and
the machine that trained is not described.
"""

from __future__ import annotations

import math
import re
import shlex
from typing import Any

from qdpo.redact import REMOVED, redact

MISSING = "n/a"

# What Markdown would read as markup; an underscore inside a word and a lone bracket are only themselves.
_SPECIAL = re.compile(r"[\\`*|~$]|(?<!\w)_|_(?!\w)|\](?=[\[(:])|^[-+#=]|(?<=^\d)[.)](?=\s)|(?<=^\d\d)[.)](?=\s)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_CONTROL_IN_LINE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]+")
_URL_OR_PATH = re.compile(r"(?P<url>https?://\S+)|(?<![\w./~\\-])(?P<path>(?:~[\w.-]*)?/[^\s'\"`,;:)\]}]+|~(?!\S))")
_WINDOWS_PATH = re.compile(r"(?<!\w)[A-Za-z]:[\\/][^\s'\"`,;)\]}]*")
_DATA_FILE = (".jsonl", ".ndjson", ".json", ".parquet", ".csv")
_PIPE = re.compile(r"(?<!\\)\|")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


def one_line(value: Any) -> str:
    """The value as text without line breaks, control characters and access tokens."""
    return redact(_CONTROL.sub(" ", str(value)), REMOVED).strip()


def printable(value: Any) -> str:
    """The value as text of several lines, without other control characters and access tokens."""
    return redact(_CONTROL_IN_LINE.sub(" ", str(value)), REMOVED)


def without_folders(value: Any) -> str:
    """The text with every absolute path and every path below a home shortened to its last component."""

    def shorten(match: re.Match[str]) -> str:
        return match.group() if match["url"] else last_component(match["path"])

    line = _WINDOWS_PATH.sub(lambda match: last_component(match.group()), one_line(value))
    return _URL_OR_PATH.sub(shorten, line)


def last_component(path: str) -> str:
    """The last part of a path: `/a/b/` gives `b`."""
    parts = [part for part in re.split(r"[\\/]+", path) if part not in ("", ".", "..")]
    return parts[-1] if parts else "."


def is_local(name: str) -> bool:
    """Whether a name can only be a path, not a name on the hub."""
    return _HUB_NAME.fullmatch(name) is None or name.lower().endswith(_DATA_FILE)


def public_name(name: Any) -> str:
    """A hub name as it is, a path by its last component."""
    line = one_line(name)
    return last_component(line) if is_local(line) else line


def text(value: Any) -> str:
    """Text for a paragraph, a list or a table cell, shown as it reads."""
    escaped = _SPECIAL.sub(lambda match: f"\\{match.group()}", without_folders(value))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(value: Any) -> str:
    """An inline code span; longer fences where the value has backticks itself, pipes escaped for tables."""
    line = one_line(value)
    if not line:
        return MISSING
    fence = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}".replace("|", "\\|")


def cut(value: Any, most: int) -> str:
    """The first characters of a text of several lines, and how many are left out; nothing of a token is among them."""
    clean = printable(value)
    return clean if len(clean) <= most else f"{clean[:most]} [{len(clean) - most:,} more characters]"


def excerpt(value: Any, most: int = 240, lines: int = 3, end: bool = False) -> str:
    """A few lines of a text, the first ones or those at its end; a mark stands for what is left out."""
    kept = [line.rstrip() for line in printable(value).splitlines() if line.strip()]
    whole = "\n".join(kept)
    short = "\n".join(kept[-lines:] if end else kept[:lines])
    short = short[-most:].lstrip() if end else short[:most].rstrip()
    if len(short) == len(whole):
        return whole
    return f"[...] {short}" if end else f"{short} [...]"


def block(content: str, language: str) -> str:
    """A fenced code block that its content cannot end."""
    fence = "`" * max(3, _longest_run(content) + 1)
    return f"{fence}{language}\n{content.removesuffix(chr(10))}\n{fence}"


def command_line(command: str) -> str:
    """A shell command without folders of the machine that ran it."""
    try:
        words = shlex.split(one_line(command))
    except ValueError:
        return without_folders(command)
    return " ".join(shlex.quote(_public_word(word)) for word in words)


def _public_word(word: str) -> str:
    key, equals, value = word.rpartition("=")
    if value.startswith(("/", "~", "\\")) or re.match(r"[A-Za-z]:[\\/]", value):
        return f"{key}{equals}{last_component(value)}"
    return without_folders(word)


def table(source: str) -> str:
    """A table whose columns are padded, so that it can be read as text too.

    Args:
        source: the lines of a Markdown table with cells of any width; `:-`, `-:` or `:-:` in the second line say where
            a column's texts stand. Pipes inside cells are escaped.
    """
    rows = [[cell.strip() for cell in _PIPE.split(line)[1:-1]] for line in source.strip().splitlines()]
    widths = [max(len(row[i]) for j, row in enumerate(rows) if j != 1) for i in range(len(rows[0]))]
    rule = [_rule(mark, width) for mark, width in zip(rows[1], widths, strict=True)]
    lines = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in (rows[0], *rows[2:])
    ]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def _rule(mark: str, width: int) -> str:
    left, right = mark.startswith(":"), mark.endswith(":")
    return f"{':' * left}{'-' * max(1, width + 2 - left - right)}{':' * right}"


def _longest_run(content: str) -> int:
    return max((len(run) for run in re.findall(r"`+", content)), default=0)


def number(value: Any) -> float | None:
    """The value as a finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def decimal(value: Any, digits: int = 4, sign: str = "") -> str:
    """A number with a fixed count of decimals, with sign "+" always signed; `n/a` for what is missing or not finite."""
    found = number(value)
    return MISSING if found is None else f"{found:{sign}.{digits}f}"


def short(value: Any) -> str:
    """A setting as short as it goes: `5e-05`, `0.1`, `16`."""
    found = number(value)
    return MISSING if found is None else f"{found:g}"


def count(value: Any) -> str:
    """A whole number with thousands separators."""
    found = number(value)
    return MISSING if found is None else f"{found:,.0f}"


def gib(value: Any) -> str:
    """Bytes as GiB."""
    found = number(value)
    return MISSING if found is None else f"{found / (1 << 30):.2f} GiB"


def duration(value: Any) -> str:
    """Seconds as hours, minutes and seconds."""
    found = number(value)
    if found is None:
        return MISSING
    minutes, seconds = divmod(round(found), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min {seconds} s"
    return f"{minutes} min {seconds} s" if minutes else f"{found:.1f} s"
