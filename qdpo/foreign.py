"""Text that is not ours (data, names, what other programs say), made fit for a terminal and a message.

A terminal obeys control characters: colours, cursor moves, titles, the clipboard. Marks of direction turn the order of
what follows. Neither leaves this project's output as itself; what is long is cut, and says so.
"""

from __future__ import annotations

import json
import re
from typing import Any

MOST = 8000
"""Characters of a message."""
SHORT = 80
"""Characters of a name or value inside a message."""

# C0 without tab and line feed, DEL, C1; line and paragraph separators; marks of direction; lone surrogates
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with an escape such as `\\x1b` for every character that a terminal would obey; tabs and lines stay."""
    return _OBEYED.sub(lambda found: _escape(found[0]), text)


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def shortened(text: str, most: int = MOST) -> str:
    """The text, or its beginning and end with the number of characters that are left out between them."""
    if len(text) <= most:
        return text
    left_out = f" ... {len(text) - most:,} more characters ... "
    end = max((most - len(left_out)) // 4, 0)
    return text[: max(most - len(left_out) - end, 0)] + left_out + text[len(text) - end :]


def shown(value: Any, most: int = SHORT) -> str:
    """A name or value of other people's data in one line: text in quotes, anything else as JSON; visible, and cut.

    Args:
        value: whatever a row holds.
        most: characters at the most, about.
    """
    if isinstance(value, str):
        # not more of a long text than is shown is looked at
        cut = value if len(value) <= most else shortened(value, most)
        return visible(json.dumps(cut, ensure_ascii=False))
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return visible(shortened(text, most))
