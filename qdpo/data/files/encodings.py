"""Which encoding a text has that is not UTF-8, as far as its bytes tell."""

from __future__ import annotations

import codecs
import re
import shlex

from qdpo.errors import DataError

UTF8_MARK = b"\xef\xbb\xbf"
MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Byte order marks of what is not UTF-8; the longer ones first."""

# Where the zero bytes of ASCII characters lie, by their places in groups of four.
WIDE = {
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
}

_MARKS = "\u2010-\u2026\u3000-\u303f\uff00-\uffef"
_HAN = "\u4e00-\u9fff"
_KANA = "\u3040-\u30ff"
NARROW = (
    ("SHIFT_JIS", "cp932", _KANA, _HAN, 0.2),
    ("EUC-JP", "euc_jp", _KANA, _HAN, 0.2),
    ("EUC-KR", "cp949", "\uac00-\ud7a3", _HAN, 0.85),
    ("GB18030", "gb18030", _HAN, "", 0.5),
    ("BIG5", "big5", _HAN, "", 0.5),
    ("WINDOWS-1251", "cp1251", "\u0401\u0451\u0410-\u044f", "\u2013-\u2026\xab\xbb\xa0\u2116", 0.5),
)
"""Name for iconv, Python's name, characters of which a share at least is made, others that occur, and this share."""

LOOKED_AT = 4096
FEWEST = 3
"""Characters that are not ASCII, from which an encoding of other scripts than Latin is told."""


def wide_encoding(start: bytes) -> str | None:
    """UTF-16 or UTF-32, by the mark at the beginning of a file or by the zero bytes of its first characters."""
    for mark, name in MARKS.items():
        if start.startswith(mark):
            return name
    groups = start[: len(start[:400]) // 4 * 4]
    if len(groups) < 8:
        return None
    one, two, three, four = (groups[place::4].count(0) > 0.7 * len(groups) / 4 for place in range(4))
    return WIDE.get((one, two, three, four))


def narrow_encoding(text: bytes) -> str | None:
    """The encoding of a part of a text that is not UTF-8 and has no zero bytes; None where none fits for sure."""
    text = text[:LOOKED_AT]
    runs = re.findall(rb"([A-Za-z]?)[\x80-\xff]+([A-Za-z]?)", text)
    if not runs:
        return None
    beside_letters = sum(bool(before or after) for before, after in runs)
    if 2 * beside_letters < len(runs) or re.search(rb"[\x80-\xff]{5}", text):
        for name, codec, own, others, share in NARROW:
            try:
                # not final: the text may have been cut inside of a character
                found = re.sub(r"[\x00-\x7f]+", "", codecs.getincrementaldecoder(codec)().decode(text))
            except UnicodeDecodeError:
                continue
            is_likely = re.fullmatch(f"[{own}{others}{_MARKS}]{{{FEWEST},}}", found)
            if is_likely and len(re.findall(f"[{own}]", found)) >= share * len(found):
                return name
        return None
    try:
        text.decode("cp1252")
    except UnicodeDecodeError:
        return None
    return "WINDOWS-1252"


def conversion(encoding: str | None, name: str) -> str:
    """How to make UTF-8 of a file, in the encoding that it seems to have where one is known."""
    return f"convert it: iconv -f {encoding or 'ENCODING'} -t UTF-8 {shlex.quote(name)} > OUT"


def seeming(error: UnicodeDecodeError) -> str | None:
    """The encoding that the text at fault, and what follows it, seems to have."""
    return narrow_encoding(error.object[max(error.start - 64, 0) :])


def not_utf8(name: str, where: str, error: UnicodeDecodeError) -> DataError:
    """The error for a file that cannot be read on where a text in it is not UTF-8."""
    encoding = seeming(error)
    looks = f", it looks like {encoding}" if encoding else ""
    return DataError(f"{name}: {where} there is text that is not UTF-8{looks}", conversion(encoding, name))


def foreign_encoding(start: bytes) -> str | None:
    """The encoding of a whole text: where several lines of its beginning, or the only one, are not ASCII, and none of
    them is UTF-8. A text with lines of both kinds has no one encoding.
    """
    lines = start.splitlines(keepends=True)
    if len(lines) > 1 and not lines[-1].endswith((b"\n", b"\r")):
        lines.pop()
    foreign = [line for line in lines if not line.isascii()]
    is_clear = len(foreign) > 1 or len(lines) == 1
    return narrow_encoding(b"".join(foreign)) if is_clear and not any(map(_is_utf8, foreign)) else None


def _is_utf8(line: bytes) -> bool:
    try:
        # a line without its end may have been cut inside of a character
        codecs.getincrementaldecoder("utf-8")().decode(line, final=line.endswith((b"\n", b"\r")))
    except UnicodeDecodeError:
        return False
    return True
