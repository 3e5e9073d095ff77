"""Tokenised data, kept by content: what the ids depend on is in the name, so a stale one is never found.

The name is a hash of the rows themselves (not of a file's time or path), the template, the tokenizer, the lengths and
every other setting of the `data` section, the seed, and the version of this code.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qdpo import __version__, console
from qdpo.data.store import RECORD, TokenPairs
from qdpo.errors import DataError, QdpoError, first_line
from qdpo.files import digest_of, manifest_problems, staged_folder, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerBase

    from qdpo.data.files.sources import Source

VERSION = 5
"""Raised when the ids or the reports of the same input change."""
KEPT = 16
"""Entries that are kept; the least recently used go first."""


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identifies a tokenizer by all that decides on ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return digest_of([type(tokenizer).__name__, rules, json.dumps(tokenizer.special_tokens_map, default=str)])


def key_of(parts: list[str]) -> str:
    """The name of an entry."""
    return digest_of([str(VERSION), __version__, *parts])[:40]


def refuse_changed(before: Mapping[Source, str]) -> None:
    """Refuse to keep rows under the name of others.

    Args:
        before: what was read, each with its identity before that.

    Raises:
        DataError: one has another identity now, or none.
    """
    for source, identity in before.items():
        try:
            same = source.identity() == identity
        except OSError:
            same = False
        if not same:
            raise DataError(
                f"{source.label} changed while it was read", "begin again when nothing writes to it any more"
            )


class Entry:
    """One entry of the cache.

    Args:
        folder: the cache.
        key: from `key_of`.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.path = folder / key

    def load(self) -> tuple[TokenPairs, TokenPairs, dict[str, Any]] | None:
        """Train, held-out, reports; None when there is nothing, or it is damaged (which is said)."""
        if not self.path.is_dir():
            return None
        if problems := manifest_problems(self.path):
            console.note(f"the tokenised data in {self.path} is damaged ({problems[0]}): tokenising again")
            return None
        os.utime(self.path)
        try:
            return self._read()
        except (OSError, ValueError, KeyError, TypeError) as error:
            # its manifest fits: somebody else's work, or another version's
            console.note(f"the tokenised data in {self.path} cannot be read ({error}): tokenising again")
            return None

    def _read(self) -> tuple[TokenPairs, TokenPairs, dict[str, Any]]:
        records = np.load(self.path / "records.npy", allow_pickle=False)
        orders = [np.load(self.path / f"{part}.npy", allow_pickle=False) for part in ("train", "heldout")]
        file = (self.path / "tokens.bin").open("rb")
        whole = TokenPairs(file, records.astype(RECORD, copy=False))
        report = json.loads((self.path / "report.json").read_text("utf-8"))
        return whole.select(orders[0]), whole.select(orders[1]), report

    def save(self, train: TokenPairs, heldout: TokenPairs, reports: dict[str, Any]) -> None:
        """Keep what was tokenised; a cache that cannot be written is no reason to stop, but is said."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with staged_folder(self.path, replace=True) as staging:
                train.file.seek(0)
                with (staging / "tokens.bin").open("wb") as target:
                    shutil.copyfileobj(train.file, target, 1 << 20)
                np.save(staging / "records.npy", train.all_records)
                np.save(staging / "train.npy", train.order)
                np.save(staging / "heldout.npy", heldout.order)
                write_json(staging / "report.json", reports)
            self._make_room()
        except (QdpoError, OSError) as error:
            console.note(f"the tokenised data is not kept for the next run: {first_line(error)}")

    def _make_room(self) -> None:
        entries = [path for path in self.path.parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
        entries.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for old in entries[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)
