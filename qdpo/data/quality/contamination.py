"""How much of an evaluation set the training pairs touch: n-grams of words, and whole texts.

As in GPT-3's report (arXiv 2005.14165, appendix C), an evaluation item is touched when 13 words in a row of it occur
in a training text; 8 words in a row are counted too, which finds more and errs more; and whole items that occur as a
training text, letter case and punctuation aside.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from qdpo.data.files.readers import Broken
from qdpo.data.files.sources import find_source, has_splits
from qdpo.data.pairs import Pair
from qdpo.data.pieces import Row
from qdpo.errors import DataError, InputMissingError

SIZES = (13, 8)
WORD = re.compile(r"\w+")
EXAMPLES = 5
COLUMNS = ("question", "prompt", "instruction", "sentence", "text", "input", "query", "problem", "ctx", "goal")
"""Columns that hold an evaluation item, in the order in which they are looked for."""
EVALUATION_SPLITS = ("validation", "dev", "test", "heldout", "train")


def words_of(text: str) -> list[str]:
    """The words of a text, without case, punctuation and compatibility forms."""
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())


@dataclass
class EvaluationSet:
    """One evaluation set and what touches it.

    Attributes:
        name: what the user called it.
        column: where its items were found.
        items: the texts, one per item.
        grams: for each size, hashes of n-grams and the items that have them.
        whole: hash of a whole normalised item and the items that are it.
        touched: for 13, 8 and 0 (whole): item -> the first position of a training pair that touches it.
    """

    name: str
    column: str
    items: list[str]
    grams: dict[int, dict[int, list[int]]] = field(default_factory=dict)
    whole: dict[int, list[int]] = field(default_factory=dict)
    touched: dict[int, dict[int, set[int]]] = field(default_factory=dict)
    long_enough: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.grams = {size: {} for size in SIZES}
        self.touched = {size: {} for size in (*SIZES, 0)}
        self.long_enough = dict.fromkeys(SIZES, 0)
        for number, text in enumerate(self.items):
            words = words_of(text)
            if words:
                self.whole.setdefault(hash(tuple(words)), []).append(number)
            for size in SIZES:
                self.long_enough[size] += len(words) >= size
                for i in range(len(words) - size + 1):
                    owners = self.grams[size].setdefault(hash(tuple(words[i : i + size])), [])
                    if not owners or owners[-1] != number:
                        owners.append(number)

    def observe(self, texts: list[list[str]], place: int) -> None:
        """Look for items in the texts of one pair, given as words."""
        for words in texts:
            for item in self.whole.get(hash(tuple(words)), ()):
                self.touched[0].setdefault(item, set()).add(place)
            for size in SIZES:
                grams, touched = self.grams[size], self.touched[size]
                for i in range(len(words) - size + 1):
                    for item in grams.get(hash(tuple(words[i : i + size])), ()):
                        touched.setdefault(item, set()).add(place)

    def as_dict(self, places: frozenset[int], rows: Mapping[int, Any]) -> dict[str, Any]:
        """For data_report.json.

        Args:
            places: the pairs that are trained on.
            rows: the row of each place.
        """
        total = len(self.items)
        found = {
            size: {item: min(hit) for item, all_hit in items.items() if (hit := all_hit & places)}
            for size, items in self.touched.items()
        }
        names = {13: "words_13", 8: "words_8", 0: "whole"}
        shown = sorted((found[0] | found[8] | found[13]).items())[:EXAMPLES]
        return {
            "name": self.name,
            "column": self.column,
            "items": total,
            "long_enough": {names[size]: n for size, n in self.long_enough.items()},
            "touched": {names[size]: {"count": len(hit), "share": len(hit) / total} for size, hit in found.items()},
            "examples": [{"item": item, "text": self.items[item][:200], "row": rows[place]} for item, place in shown],
        }


def load_sets(names: Iterable[str]) -> list[EvaluationSet]:
    """The evaluation sets of `data.contamination`: a file or `NAME:CONFIG[SPLIT]`, either with `#COLUMN`.

    Raises:
        DataError: a set has no rows, or no column with text.
    """
    return [_load(name) for name in names]


def _load(wanted: str) -> EvaluationSet:
    name, _, column = wanted.partition("#")
    rows = [row for row in _rows(name) if isinstance(row, dict) and not isinstance(row, Broken)]
    if not rows:
        raise DataError(f"{name}: no rows to compare the training pairs with")
    if column and not any(isinstance(row.get(column), str) for row in rows):
        raise DataError(f"{name} has no text in a column `{column}`", f"its columns are {', '.join(map(str, rows[0]))}")
    if not column:
        column = _choose(rows, name)
    items = [text for row in rows for text in _items(row, column)]
    return EvaluationSet(name, column, items)


def _rows(name: str) -> Iterable[Any]:
    if not has_splits(name):
        return find_source(name).rows()
    # Evaluation sets on the hub are read from the split that scores are reported on.
    place, _, split = name.removesuffix("]").partition("[")
    base, _, config = place.partition(":")
    if split:
        return find_source(base, split=split, config=config or None).rows()
    last: Exception | None = None
    for candidate in EVALUATION_SPLITS:
        try:
            return find_source(base, split=candidate, config=config or None).rows()
        except (DataError, InputMissingError) as error:
            last = error
    raise DataError(f"{name} has none of the splits {', '.join(EVALUATION_SPLITS)}: {last}", "name one: NAME[SPLIT]")


def _choose(rows: Sequence[Row], name: str) -> str:
    head = list(islice(rows, 50))
    if {"sentence", "option1", "option2"} <= head[0].keys():
        return "sentence"
    if {"prompt", "chosen"} <= head[0].keys() or {"sentence_good", "sentence_bad"} <= head[0].keys():
        return "prompt" if "prompt" in head[0] else "sentence_good"
    texts = {column for row in head for column, value in row.items() if isinstance(value, str) and value.strip()}
    for column in COLUMNS:
        if column in texts:
            return column
    if not texts:
        raise DataError(f"{name} has no column with text", f"name one: {name}#COLUMN")
    return max(sorted(texts), key=lambda column: sum(len(str(row.get(column) or "")) for row in head))


def _items(row: Row, column: str) -> list[str]:
    text = row.get(column)
    if not isinstance(text, str):
        return []
    if column == "sentence" and {"option1", "option2"} <= row.keys() and text.count("_") == 1:
        # The item is the sentence as the right answer completes it; without an answer, as the first option does.
        right = "option2" if str(row.get("answer")) == "2" else "option1"
        return [text.replace("_", str(row[right]))]
    chosen = row.get("chosen")
    if column == "prompt" and isinstance(chosen, str):
        return [f"{text} {chosen}"]
    return [text]


def texts_of(pair: Pair) -> list[list[str]]:
    """The texts of a pair that an evaluation item may occur in: with each answer the prompt, and the messages alone."""
    prompt = " ".join(message.content for message in pair.prompt)
    whole = [f"{prompt} {side[-1].content}" for side in (pair.chosen, pair.rejected)]
    return [words_of(text) for text in (*whole, *(message.content for message in pair.prompt))]
