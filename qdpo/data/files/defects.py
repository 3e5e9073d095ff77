"""Files that are no data, by their first bytes: each is refused by the name of what it is, with the way out."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from qdpo.data.files.encodings import conversion, foreign_encoding, narrow_encoding, wide_encoding
from qdpo.errors import DataError
from qdpo.foreign import shown

FORMATS = "a JSON, CSV, Parquet or Arrow file"
GIVE = f"give {FORMATS}"
TABULAR = "save the sheet as CSV in UTF-8, and give that"
MEMBERS = f"unpack it, and give {FORMATS} of it"
WRITE = "load it with what wrote it, and write the rows as JSON Lines"

BINARY = {
    b"\x80\x02": ("a Python pickle", f"{WRITE}: only where you trust its source, a pickle runs code"),
    b"\x80\x03": ("a Python pickle", f"{WRITE}: only where you trust its source, a pickle runs code"),
    b"\x80\x04": ("a Python pickle", f"{WRITE}: only where you trust its source, a pickle runs code"),
    b"\x80\x05": ("a Python pickle", f"{WRITE}: only where you trust its source, a pickle runs code"),
    b"SQLite format 3\x00": ("an SQLite database", "write the table as CSV: sqlite3 -csv -header FILE 'SELECT ...'"),
    b"%PDF-": ("a PDF document", GIVE),
    b"\x93NUMPY": ("a NumPy array", WRITE),
    b"\x89HDF\r\n": ("an HDF5 file", WRITE),
    b"GGUF": ("a GGUF model", "that is a model; the data is a file of its own"),
    b"Obj\x01": ("an Avro file", WRITE),
    b"PK\x05\x06": ("an empty ZIP archive", GIVE),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", MEMBERS),
    b"Rar!\x1a\x07": ("a RAR archive", MEMBERS),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an old Excel or Word file", TABULAR),
    b"\x89PNG\r\n": ("a PNG image", GIVE),
    b"\xff\xd8\xff": ("a JPEG image", GIVE),
    b"\x7fELF": ("a program", GIVE),
    rb"{\rtf": ("an RTF document", GIVE),
}
"""What begins with these bytes, and the way out."""

ZIPPED = (
    (b"xl/", "an Excel workbook (xlsx)", TABULAR),
    (b"word/", "a Word document (docx)", "save its table as CSV in UTF-8, and give that"),
    (b"ppt/", "a PowerPoint presentation (pptx)", GIVE),
    (b"mimetypeapplication/vnd.oasis.opendocument.spreadsheet", "an OpenDocument sheet (ods)", TABULAR),
    (b"mimetypeapplication/vnd.oasis", "an OpenDocument file", GIVE),
    (b"data.pkl", "a PyTorch file (a ZIP archive with a pickle)", WRITE),
    (b".npy", "NumPy arrays (npz)", WRITE),
)
"""What a ZIP archive is, by what is among the names in it."""

TAR = slice(257, 262)
LFS = b"version https://git-lfs"
SERVER = re.compile(
    r"(entry|repository|file|page|dataset)? ?not found|404:? not found|unauthorized|forbidden|access denied"
    r"|invalid (username|credentials)|access to (dataset|model) .* is restricted|rate limit|internal server error"
    r"|too many requests",
    re.I,
)
LONGEST_REPLY = 500
"""Bytes of a file that may be a server's answer in words."""


@dataclass(frozen=True)
class Defect:
    """How a text begins that is no data.

    Attributes:
        begins: matched at its beginning, behind white space.
        what: what it is.
        fix: the way out.
    """

    begins: re.Pattern[str]
    what: str
    fix: str


def _defect(begins: str, what: str, fix: str) -> Defect:
    return Defect(re.compile(begins, re.I | re.S), what, fix)


PAGES = (
    _defect(
        r"<(!doctype html|html|head|body)\b",
        "an HTML page, saved in place of the data: a page about it, or one that asks for a login",
        "download the file itself: its raw link (on the hub /resolve/ in place of /blob/), logged in where it must be",
    ),
    _defect(r"<\?xml.{0,200}<error>", "a server's error message in XML", "download the data again"),
    _defect(r"<\?xml", "XML", GIVE),
)
"""Whatever the file is called."""

NOT_JSON = (
    _defect(r"```", "wrapped in a Markdown code fence", "take the lines with ``` out, and what is around them"),
    _defect(
        r"(---\s*\n|- +[\w\"']+:(\s|$)|[\w ]+:\s*\n\s*- )",
        "YAML, not JSON",
        "write it as JSON Lines: one object a line, with json.dumps",
    ),
    _defect(
        r"(const |let |var |export \w+ )?[A-Za-z_]\w*\s*=\s*[\[{]",
        "a program's text, not JSON: it assigns to a variable",
        "keep the list alone, as JSON, or let the program write it",
    ),
    _defect(r"(import|from) \w+[\w. ]*\n", "a Python program", "run it, and give the file that it writes"),
)
"""Where JSON is expected."""


def refuse_bytes(name: str, start: bytes, end: bytes) -> None:
    """Refuse what is known by its first bytes to be no data.

    Args:
        name: of the file.
        start: its first bytes, some kilobytes.
        end: its last bytes, where an archive has its names.

    Raises:
        DataError: says what it is.
    """
    if start.startswith(b"PK\x03\x04"):
        for member, what, fix in ZIPPED:
            if member in start or member in end:
                raise DataError(f"{name} is {what}", fix)
        raise DataError(f"{name} is a ZIP archive", f"unpack it (unzip), and give {FORMATS} of it")
    for magic, (what, fix) in BINARY.items():
        if start.startswith(magic):
            raise DataError(f"{name} is {what}", fix)
    if start[TAR] == b"ustar":
        raise DataError(f"{name} is a tar archive", f"unpack it (tar xf), and give {FORMATS} of it")
    length = int.from_bytes(start[:8], "little")
    if start[8:10] == b'{"' and 2 < length < 1 << 30 and len(start) > 10:
        raise DataError(f"{name} is a safetensors file", "that is a model's weights; the data is a file of its own")


def refuse_text(name: str, start: bytes, *, whole: bool, json: bool) -> None:
    """Refuse what is text, but no data, or no UTF-8 from its beginning on.

    Args:
        name: of the file.
        start: its first bytes, unpacked, some kilobytes.
        whole: whether that is all of it.
        json: whether JSON is expected.

    Raises:
        DataError: says what it is.
    """
    if start.startswith(LFS):
        raise DataError(
            f"{name} is a Git LFS pointer: the data itself was not downloaded",
            "in the clone: git lfs install && git lfs pull; or download the file itself",
        )
    if encoding := wide_encoding(start):
        raise DataError(f"{name} is not UTF-8 but {encoding}", conversion(encoding, name))
    if encoding := foreign_encoding(start):
        raise DataError(f"{name} is not UTF-8, it looks like {encoding}", conversion(encoding, name))
    text = start.decode("utf-8-sig", "replace").lstrip()
    for defect in (*PAGES, *(NOT_JSON if json else ())):
        if defect.begins.match(text):
            raise DataError(f"{name} is {defect.what}", defect.fix)
    if whole and len(start) <= LONGEST_REPLY and SERVER.match(text):
        raise DataError(
            f"{name} is a server's answer in place of the data: {shown(text.strip())}",
            "check its address and that you may read it, and download it again",
        )
    if not start.strip(b"\x00"):
        raise DataError(f"{name} begins with {len(start):,} zero bytes: it was not written", "copy or write it again")
    if _is_binary(start, text):
        raise DataError(f"{name} is binary data, no text", f"{GIVE}; is it damaged, or packed in a way of its own?")


def _is_binary(start: bytes, text: str) -> bool:
    """Whether a beginning has too many characters that no text has; JSON is told of line by line."""
    text = text[:512]
    odd = len(re.findall("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f\ufffd]", text))
    return odd > 0.2 * len(text) and not text.startswith(("{", "[")) and narrow_encoding(start[:512]) is None


@dataclass(frozen=True)
class Cause:
    """Why a line is not JSON.

    Attributes:
        fits: whether it is this, by the line and the place of the fault in it.
        what: in words, behind `the line is not JSON`.
        fix: the way out.
    """

    fits: Callable[[str, int], bool]
    what: str
    fix: str


def _found(pattern: str) -> Callable[[str, int], bool]:
    compiled = re.compile(pattern)
    return lambda line, at: compiled.match(line) is not None


def _around(pattern: str) -> Callable[[str, int], bool]:
    """Whether the pattern is found at the fault, or some characters beside it."""
    compiled = re.compile(pattern)
    return lambda line, at: compiled.search(line[max(at - 3, 0) : at + 3]) is not None


CAUSES = (
    Cause(_found(r"\x00+$"), ": zero bytes, the file was not written to its end", "copy or write the file again"),
    Cause(_found(r"(<{7}|={7}|>{7})( |$)"), ": a mark of a git merge", "settle the merge in the file"),
    Cause(_found(r"```"), ": a Markdown code fence", "take the line out"),
    Cause(_found(r"(//|#|/\*)"), ": a comment", "take the line out"),
    Cause(
        lambda line, at: bool(re.match(r"[\[{(]\s*'", line)) or bool(re.match(r"(None|True|False|nan)\b", line[at:])),
        " but Python",
        "write rows with json.dumps(row), not str(row)",
    ),
    Cause(_found("[\\[{]\\s*[“”„]"), ": it has curly quotes", 'write " around keys and texts'),
    Cause(_found(r".*[}\]]\s*,$"), ": it ends with a comma", "take the comma out: sed -i 's/,$//' FILE"),
    Cause(_around(r",\s*[}\]]"), ": it has a comma before } or ]", "take that comma out"),
    Cause(_around(r"[}\]]\s*[{\[]"), " but several objects", "write one object a line: jq -c . FILE > OUT"),
)
"""Looked through in order; the first that fits is told."""

OF_THE_PARSER = {
    "Invalid control character": (": a raw tab, line end or control character is in a text", r"write it as \t or \n"),
    "Invalid \\escape": (r": a text has a backslash that stands for nothing", r"write it as \\"),
}
"""What Python's parser says."""


def why_not_json(line: str, message: str, at: int) -> tuple[str, str]:
    """What is wrong with a line that is not JSON, behind `the line is not JSON`, and how to mend it.

    Args:
        line: without white space around it.
        message: the parser's.
        at: the place of the fault.
    """
    for cause in CAUSES:
        if cause.fits(line, at):
            return cause.what, cause.fix
    for said, found in OF_THE_PARSER.items():
        if message.startswith(said):
            return found
    return "", "mend it: one whole JSON object a line"
