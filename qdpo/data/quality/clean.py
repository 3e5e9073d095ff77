"""What `data.clean` mends in every message: HTML entities, mojibake, invisible characters.

A mend gives a text back as it is where there is nothing to mend: what it would change is what the report counts.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from html.entities import name2codepoint

from qdpo.data.pairs import Message, Pair
from qdpo.data.pieces import BadRow
from qdpo.data.quality import mojibake
from qdpo.foreign import SHORT, shortened

# What programs that escape HTML write. Of the other names many follow `&` in programs: int, sum, pi, image, ...
_NAMES = {name for name, code in name2codepoint.items() if code < 0x100 or 0x2000 <= code <= 0x2122}
_NAMES = (_NAMES - {"not", "times", "image", "real", "prime"}) | {"amp", "lt", "gt", "quot", "apos"}
_ENTITY = re.compile(f"&(?:#[0-9]{{1,7}}|#[xX][0-9a-fA-F]{{1,6}}|{'|'.join(sorted(_NAMES))});")
_CODE = r"```.*?(?:```|\Z)|`[^`\n]+`|<(?P<tag>pre|code|script|style)\b.*?(?:</(?P=tag)>|\Z)"
CODE = re.compile(_CODE, re.DOTALL | re.IGNORECASE)
"""Code inside a text: between fences or backticks, or in an element for it."""
_CODE_OR_ENTITY = re.compile(f"(?P<code>{_CODE})|{_ENTITY.pattern}", re.DOTALL | re.IGNORECASE)
DOCUMENT = re.compile(r"<(?:!doctype|html|head|body|div|svg|\?xml)\b|<\?xml", re.IGNORECASE)
"""Of a text that is HTML or XML itself."""
MOST_TIMES = 4
"""How often entities are decoded: what was escaped twice is `&amp;lt;`."""

_COMPLEX = "\u0590-\u0dff\u0f00-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefc"
"""Scripts in which joiners have a meaning: Hebrew, Arabic, those of India, Tibetan, Burmese, Khmer, Mongolian."""
_UNSPACED = "\u0e00-\u109f\u1780-\u17ff"
"""Scripts that mark the places between words by a space without width: Thai, Lao, Tibetan, Burmese, Khmer."""
_PICTURES = "\u200d\u2000-\u2bff\u3030\u303d\u3297\u3299\ufe0e\ufe0f\U0001f000-\U0001faff"
_IDEOGRAPHS = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SELECTORS, _FURTHER = "\ufe00-\ufe0f", "\U000e0100-\U000e01ef"
_TAGS = "\U000e0000-\U000e007f"

_FLAG = "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"
"""The flag of a part of a country is written with tag characters."""
_ZERO_WIDTH = (
    f"(?<![{_COMPLEX}])[\u034f\u200c\u200d](?![{_COMPLEX}])(?!(?<=[{_PICTURES}]\u200d)[{_PICTURES}])"
    f"|(?<![{_UNSPACED}])\u200b(?![{_UNSPACED}])"
    "|[\u115f\u1160\u180e\u2060-\u2064\u206a-\u206f\u3164\uffa0\ufff9-\ufffb]"
)
_HIDING = (
    f"(?<=[{_SELECTORS}{_FURTHER}])[{_SELECTORS}{_FURTHER}]|(?<![{_IDEOGRAPHS}])[{_FURTHER}]"
    f"|(?<![#*0-9©®{_PICTURES}{_IDEOGRAPHS}\u1000-\u109f\u1800-\u18af\u3000-\u30ff])[{_SELECTORS}]"
)
INVISIBLE = {
    "zero_width": "zero-width characters",
    "hyphen": "soft hyphens",
    "mark": "byte order mark",
    "tags": "tag characters, which show nothing and can hide instructions",
    "hiding": "variation selectors that select nothing and can hide data",
}
"""The kinds of invisible characters, in words."""
_INVISIBLE = re.compile(
    f"(?P<flag>{_FLAG})|(?P<zero_width>{_ZERO_WIDTH})|(?P<hyphen>\u00ad)|(?P<mark>\ufeff)|(?P<tags>[{_TAGS}]+)"
    f"|(?P<hiding>(?:{_HIDING})+)"
)
_HINT = re.compile(
    "[\u00ad\u034f\u115f\u1160\u180e\u200b-\u200d\u2060-\u206f\u3164\uffa0\ufeff\ufff9-\ufffb"
    f"{_SELECTORS}{_FURTHER}{_TAGS}]"
)
"""All that may be one; much faster, and most text has none."""


def entities(text: str) -> str:
    """The text with HTML entities decoded (`&#39;`, `&nbsp;`), also those that were escaped twice.

    They stay in code, and in a text that is HTML itself.
    """
    for _ in range(MOST_TIMES):
        if "&" not in text or not _ENTITY.search(text) or DOCUMENT.search(text):
            break
        before, text = text, _CODE_OR_ENTITY.sub(_decoded, text)
        if text == before:
            break
    return text


def _decoded(found: re.Match[str]) -> str:
    return found[0] if found["code"] else html.unescape(found[0])


def invisible(text: str) -> str:
    """The text without characters that show nothing, where they mean nothing.

    Joiners of Arabic, Persian and the scripts of India, spaces of Thai and Khmer, what emoji and flags are put together
    with, and marks of direction stay.
    """
    if text.isascii() or not _HINT.search(text):
        return text
    return _INVISIBLE.sub(lambda found: found[0] if found["flag"] else "", text)


def invisible_kinds(text: str) -> set[str]:
    """What `invisible` would take out of a text, in the words of `INVISIBLE`."""
    if text.isascii() or not _HINT.search(text):
        return set()
    kinds = {found.lastgroup for found in _INVISIBLE.finditer(text)}
    return {INVISIBLE[kind] for kind in kinds if kind and kind != "flag"}


MENDS: dict[str, Callable[[str], str]] = {
    "entities": entities,
    "mojibake": mojibake.mended,
    "invisible": invisible,
}
"""In the order in which they are done: an entity may stand for a character of the others."""


def cleaned(pair: Pair, wanted: Collection[str]) -> tuple[Pair, set[str]]:
    """A pair with every message mended, and which mends have changed something.

    Args:
        pair: as it was read.
        wanted: names of `MENDS`; their order does not matter.

    Raises:
        BadRow: a message is empty afterwards, or the answers are the same.
    """
    done: set[str] = set()

    def clean(field: str, messages: Sequence[Message]) -> tuple[Message, ...]:
        return tuple(Message(message.role, clean_text(field, message.content)) for message in messages)

    def clean_text(field: str, text: str) -> str:
        before = text
        for name, mend in MENDS.items():
            if name in wanted and (mended := mend(text)) != text:
                done.add(name)
                text = mended
        if before.strip() and not text.strip():
            raise BadRow(f"`{field}` is empty after data.clean", "write a text", field, shortened(ascii(before), SHORT))
        return text

    mended = [clean(field, getattr(pair, field)) for field in ("prompt", "chosen", "rejected")]
    if not done:
        return pair, done
    if mended[1] == mended[2]:
        raise BadRow(
            "chosen and rejected are identical after data.clean", "write two answers that differ", "chosen, rejected"
        )
    return replace(pair, prompt=mended[0], chosen=mended[1], rejected=mended[2]), done
