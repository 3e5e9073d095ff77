"""What is often a mistake in texts: counted with its first rows, changed only where `data.clean` says so."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import asdict

from qdpo.data.counts import Counted
from qdpo.data.pairs import Pair
from qdpo.data.quality import mojibake
from qdpo.data.quality.clean import INVISIBLE, entities, invisible_kinds
from qdpo.data.quality.leftovers import left_over

ODD = re.compile("[\x00\r\ufffd\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ue000-\uf8ff]")
NAMES = {"\x00": "NUL", "\r": "carriage return (CRLF)", "\ufffd": "replacement character"}
ENTITIES = "HTML entities such as `&amp;`"
MOJIBAKE = "text that was decoded wrongly (mojibake, such as `Ã©`)"
MENDED_BY = {ENTITIES: "entities", MOJIBAKE: "mojibake", **dict.fromkeys(INVISIBLE.values(), "invisible")}
"""What `data.clean` calls the mend of what is odd."""
LOOKED_AT = 200
"""Characters that decide on a text's script."""


class Oddities:
    """Counts rows by what is odd in them; a row may be in several counts."""

    def __init__(self) -> None:
        self.found: dict[str, Counted] = {}
        self.scripts: Counter[str] = Counter()

    def observe(self, pair: Pair) -> None:
        """Look at one pair."""
        texts = [message.content for message in (*pair.prompt, *pair.chosen, *pair.rejected)]
        found = left_over(pair, texts)
        for text in texts:
            found |= odd_in(text)
        scripts = [script_of(text) for text in (texts[-2], texts[-1])]
        self.scripts[scripts[0]] += 1
        if scripts[0] != scripts[1]:
            found.add("the answers are in different scripts")
        for name in found:
            self.found.setdefault(name, Counted()).add(pair.row)

    def as_dict(self) -> dict[str, object]:
        """For data_report.json."""
        most_first = sorted(self.found.items(), key=lambda item: -item[1].count)
        return {
            "unicode": {name: asdict(rows) for name, rows in most_first},
            "scripts": dict(self.scripts.most_common()),
        }


def odd_in(text: str) -> set[str]:
    """The odd characters of a text, in words."""
    ascii = text.isascii()
    # in a text of ASCII alone two signs are looked for, which takes no time
    looked_at = not ascii or "\r" in text or "\x00" in text
    found = {_name(character) for character in ODD.findall(text)} if looked_at else set()
    if entities(text) != text:
        found.add(ENTITIES)
    if ascii:
        return found
    if mojibake.mended(text) != text:
        found.add(MOJIBAKE)
    return found | invisible_kinds(text)


def _name(character: str) -> str:
    if character in NAMES:
        return NAMES[character]
    return "private-use character" if "\ue000" <= character <= "\uf8ff" else "direction mark"


def script_of(text: str) -> str:
    """The script that most letters at the beginning of a text have: Latin, Cyrillic, CJK, ...; `none` without any."""
    head = text[:LOOKED_AT]
    if head.isascii():
        return "Latin" if any(map(str.isalpha, head)) else "none"
    names = Counter(unicodedata.name(c, "?").partition(" ")[0].title() for c in head if c.isalpha())
    return names.most_common(1)[0][0] if names else "none"
