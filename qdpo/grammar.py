"""Words that go with others: `1 pair is` and `2 pairs are`, `a user` and `an assistant`."""

from __future__ import annotations


def agreed(count: int, one: str, many: str) -> str:
    """The one word or the other, as the count asks for."""
    return one if count == 1 else many


def counted(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun and what goes with it: `1 row`, `2,000 rows`.

    Args:
        count: how many.
        one: the words behind 1.
        many: the words behind any other number; None adds an s to those behind 1.
    """
    return f"{count:,} {agreed(count, one, f'{one}s' if many is None else many)}"


def with_article(noun: str) -> str:
    """`a user`, `an assistant`."""
    return f"{'an' if noun[:1] in 'aeio' else 'a'} {noun}"
