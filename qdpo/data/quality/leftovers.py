"""What the making of a dataset leaves in its texts: tags of HTML, encoded data, errors and nothing as answers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qdpo.data.pairs import Message, Pair
from qdpo.data.quality.clean import CODE, DOCUMENT

TAG = re.compile(
    r"^\|.*$|<br\s*/?>|(?<!\w)<p>|</(?:p|b|i|u|a|em|strong|span|font|li|ul|ol|h[1-6]|td|tr|table|center)>",
    re.IGNORECASE | re.MULTILINE,
)
"""A tag that is left over; what begins with a bar is a line of a Markdown table, where `<br>` belongs."""
ABOUT_HTML = re.compile(
    r"\b(?:x?html\d?|xml|css|tags?|markup|web ?(?:page|site)s?|javascript|react|jsx|php|browsers?)\b", re.IGNORECASE
)
ENCODED = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,|[A-Za-z0-9+/]{200,}|(?:[A-Za-z0-9+/]{60,76}\r?\n){4,}")
WINDOW = 100
"""Characters without a space that every such run has, wherever one begins to count."""
FEWEST_SIGNS = 16
"""Different characters of encoded data; ten thousand digits of pi have ten, and a genome four."""
MISSING = re.compile(
    r"[#<]?(?:nan|none|null|undefined|n/a|na)>?|[\[<](?:deleted|removed|empty|no (?:answer|response|output))[\]>]",
    re.IGNORECASE,
)
LONGEST_ERROR = 2000
"""Characters of an answer that can be nothing but an error."""
ERROR = re.compile(
    "|".join(
        (
            r"\{\s*[\"']error[\"']\s*:",
            r"\[?error\]?:? ?(?:code:? ?)?[45]\d\d\b",
            r"[45]\d\d (?:too many|internal|bad gateway|service|gateway|client error|server error)",
            r"(?:http ?error|too many requests|rate ?limit(?: ?error|ed| (?:reached|exceeded|hit)))\b",
            r"upstream (?:connect|request) ",
            r"traceback \(most recent call last\):",
            r"(?:openai|anthropic|requests|httpx|google)\.[\w.]*(?:error|exception)\b",
            r"(?:(?:i['’]m )?sorry,? (?:but )?)?(?:there was )?an (?:\w+ ){0,2}error (?:has )?(?:occur|gener|proc)",
            r"(?:read|connection|request|gateway) timed? ?out",
            r"(?:internal server|network|connection|connect) ?error\b|bad gateway|service unavailable",
            r"connection (?:reset|refused|aborted)|httpsconnectionpool\(",
            r"this model['’]s maximum context length|the (?:server|model|engine) is (?:currently )?overloaded",
            r"<html>\s*<head>\s*<title>[45]\d\d\b",
        )
    ),
    re.IGNORECASE,
)
"""How answers begin that are what a server or a program said instead of one."""
ABOUT_ERRORS = re.compile(r"errors?\b|exceptions?\b|traceback|time-?outs?\b|http", re.IGNORECASE)
"""In a prompt that asks for one."""


def left_over(pair: Pair, texts: Sequence[str]) -> set[str]:
    """What is left over in a pair, in words.

    Args:
        pair: as it was read.
        texts: of all its messages.
    """
    found = set()
    if any(map(_has_tag, texts)) and not any(map(ABOUT_HTML.search, texts)):
        found.add("HTML tags in text that is not HTML")
    if any(map(_has_encoded, texts)):
        found.add("long runs of encoded data (base64)")
    asked = [message.content for message in pair.prompt if message.role == "user"]
    for answer in (_said(pair.chosen), _said(pair.rejected)):
        if MISSING.fullmatch(answer):
            found.add('an answer that is a word for nothing (such as "nan", "N/A", "[deleted]")')
        elif len(answer) <= LONGEST_ERROR and ERROR.match(answer) and not any(map(ABOUT_ERRORS.search, asked)):
            found.add("an answer that is the error of a server or a program")
        elif asked and answer == asked[-1].strip():
            found.add("an answer that is the prompt again")
    return found


def _said(answer: Sequence[Message]) -> str:
    return answer[-1].content.strip()


def _has_tag(text: str) -> bool:
    if "<" not in text or not TAG.search(text) or DOCUMENT.search(text):
        return False
    return any(tag.startswith("<") for tag in TAG.findall(CODE.sub("", text)))


def _has_encoded(text: str) -> bool:
    if all(text.find(" ", at, at + WINDOW) >= 0 for at in range(0, len(text) - WINDOW + 1, WINDOW)):
        return False
    return any(found[0].startswith("data:") or _is_encoded(found[0]) for found in ENCODED.finditer(text))


def _is_encoded(run: str) -> bool:
    return len(set(run)) >= FEWEST_SIGNS and any(map(str.isdigit, run)) and any(map(str.isalpha, run))
