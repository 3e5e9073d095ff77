"""Mojibake: UTF-8 that was read as Windows-1252 or Latin-1 (`cafÃ©`, `donâ€™t`), found by reading it back.

A letter such as `Ã` or `é` before a sign that could be a byte of UTF-8 is no proof: `«allé»`, `“IRMÃ”` and `2 × 3` with
spaces that do not break are right as they are. What is mended is what no text has by intention.
"""

from __future__ import annotations

import re

_BYTES = {bytes([number]).decode("cp1252", "ignore") or chr(number): number for number in range(0x80, 0x100)}
_BYTES |= {chr(number): number for number in range(0x80, 0x100)}
"""Characters and the byte that each was read from. The five bytes that Windows-1252 does not have, and all of Latin-1,
stand for themselves."""
_TABLE = {ord(character): number for character, number in _BYTES.items()}
_LATER = "".join(sorted(character for character, number in _BYTES.items() if number < 0xC0))
"""What the later bytes of a character were read as."""
_QUIET = "\xa0«»‹›’”“‘…–—™®©º°ª²³¹·"
"""Those that may follow a letter by intention."""
_BETWEEN = "\xa0«»‹’”‘…–—ŠŽŒŸšžœ"
"""Those behind which another letter may follow, and those that are letters."""
_L, _LOUD, _INSIDE = (
    "[" + re.escape("".join(sign for sign in _LATER if sign not in without)) + "]" for without in ("", _QUIET, _BETWEEN)
)
_ONE = rf"(?:[Â-Þ]{_L}|[à-ï]{_L}{{2}}|ð{_L}{{3}})"
_LOWER, _UPPER, _OPENING = "a-zß-öø-ÿ", "A-ZÀ-ÖØ-Þ", "“‘«‹„\"'("

_WRONG = re.compile(
    # a quotation mark, dash, sign of money, arrow, tick; a byte order mark; an emoji
    rf"â[€‚„†ˆ‰Š‹Œœ˜™š›žŸ\x80\x82\x84\x86\x88-\x8c\x98-\x9c]{_L}|ï»¿|ð[Ÿ\x9f\x9d]{_L}{{2}}"
    # two characters in a row: other alphabets; one of three bytes with a sign that follows no letter
    rf"|(?!(?:[Â-Þ][{_BETWEEN}]){{1,8}}(?!{_ONE})){_ONE}{{2,}}|[à-ï](?:{_LOUD}{_L}|{_L}{_LOUD})"
    # a capital behind a small letter; a sign inside of a word
    rf"|(?<=[{_LOWER}])[Â-ÖØ-Þ]{_L}|(?:(?:[Â-ÖÙ-Þ]|[à-ï]{_L}){_INSIDE}|Å[šžœ])(?=[{_LOWER}{_UPPER}])"
    # what never follows Â or Ã; what may do so, in no word of capitals and no quotation
    rf"|[ÂÃ]{_LOUD}|(?<![{_UPPER}{_OPENING}])[ÂÃ]{_L}"
)
_POSSIBLE = re.compile(_ONE)
_HINT = re.compile(f"[Â-ð]{_L}")
"""Much faster than the others; most text has none."""
_WHOLE = re.compile(rf"(?:[\x00-\x7f]|{_ONE})*")
MOST_TIMES = 3
"""How often a text is read back: what went wrong twice is `Ã©` the first time."""


def mended(text: str) -> str:
    """The text with mojibake read back as what it was; as it is where there is none."""
    for _ in range(MOST_TIMES):
        if text.isascii() or not _HINT.search(text) or not _WRONG.search(text):
            break
        # where no letter is right as it is, the doubtful ones are wrong as well
        before, wrong = text, _POSSIBLE if _WHOLE.fullmatch(text) else _WRONG
        text = wrong.sub(lambda found: _POSSIBLE.sub(_read_back, found[0]), text)
        if text == before:
            break
    return text


def _read_back(wrong: re.Match[str]) -> str:
    try:
        return wrong[0].translate(_TABLE).encode("latin-1").decode("utf-8")
    except UnicodeError:
        return wrong[0]
