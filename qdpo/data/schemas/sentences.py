"""Rows of single sentences, of which one is right and another is not."""

from __future__ import annotations

from qdpo.data.messages import answer
from qdpo.data.pairs import Message
from qdpo.data.pieces import BadRow, Row, text_of
from qdpo.data.schemas.shape import Draw, Format, Parts


def _read_winogrande(row: Row, draw: Draw) -> Parts:
    sentence = text_of(row, "sentence")
    if sentence.count("_") != 1:
        raise BadRow(f"`sentence` has {sentence.count('_')} gaps `_`, expected 1", "mark one gap", "sentence")
    right = str(row.get("answer"))
    if right not in ("1", "2"):
        raise BadRow("`answer` says of neither option that it is right, expected 1 or 2", "write 1 or 2", "answer")
    options = [text_of(row, "option1").strip(), text_of(row, "option2").strip()]
    before, after = sentence.split("_")
    completions = [answer(option + after.rstrip()) for option in options]
    if right == "2":
        completions.reverse()
    prompt = [Message("user", before.strip())] if before.strip() else []
    return prompt, completions[0], completions[1], None


def _read_minimal(row: Row, draw: Draw) -> Parts:
    return [], answer(text_of(row, "sentence_good")), answer(text_of(row, "sentence_bad")), None


SENTENCES = (
    Format(
        "winogrande",
        ("sentence", "option1", "option2", "answer"),
        _read_winogrande,
        "Winogrande",
        "sentence (with `_`), option1, option2, answer",
    ),
    Format("minimal_pairs", ("sentence_good", "sentence_bad"), _read_minimal, "BLiMP"),
)
"""The formats of this file."""
