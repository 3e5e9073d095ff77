"""A mistake in a preset or an override: where it is, what is wrong, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qdpo.errors import ConfigError

SHOWN = 20
"""Mistakes that one error lists; a file with more is most often not a preset at all."""


@dataclass(frozen=True)
class Problem:
    """One mistake.

    Attributes:
        where: `file:line`, `file`, or `--set`.
        what: what is wrong and what was expected.
        hint: the way out, if there is one to name.
    """

    where: str
    what: str
    hint: str | None = None


def config_error(problems: Sequence[Problem]) -> ConfigError:
    """All mistakes as one error, in the order given."""
    if len(problems) == 1:
        only = problems[0]
        return ConfigError(f"{only.where}: {only.what}", only.hint)
    lines = [f"{len(problems)} mistakes in the configuration"]
    for problem in problems[:SHOWN]:
        lines.append(f"  {problem.where}: {problem.what}" + (f" ({problem.hint})" if problem.hint else ""))
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more")
    return ConfigError("\n".join(lines))


def nearest(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """The known words that `word` was most likely meant to be; empty when none is close."""
    return difflib.get_close_matches(word[:100], list(known), n=count, cutoff=0.6)


def quoted(value: object, limit: int = 60) -> str:
    """A value for a message: on one line, printable, and not longer than `limit`."""
    text = value if isinstance(value, str) else repr(value)
    # Escapes, so that a value cannot move the cursor or colour the terminal.
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[: limit + 1])
    return f"`{text}`" if len(text) <= limit else f"`{text[:limit]}...`"
