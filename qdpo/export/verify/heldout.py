"""What an export is scored on: the run's own held-out pairs, and texts that are hard to tokenise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qdpo.data.pairs import Message, TokenPair
from qdpo.data.template import own_template
from qdpo.export.source import Run
from qdpo.export.verify.tricky import TRICKY


@dataclass(frozen=True)
class Heldout:
    """Held-out pairs of a run.

    Attributes:
        pairs: token pairs, as the training evaluates them.
        prompts: the texts of the first prompts, and their ids.
        ends: ids that end an answer.
        tokenizer: the run's.
    """

    pairs: list[TokenPair]
    prompts: list[tuple[str, list[int]]]
    ends: frozenset[int]
    tokenizer: Any


def read_heldout(run: Run, count: int) -> Heldout:
    """The first `count` held-out pairs of a run.

    Raises:
        QdpoError: the run's configuration or its data cannot be read.
    """
    from transformers import AutoTokenizer

    from qdpo.data.prepare import prepare
    from qdpo.paths import cache_folder
    from qdpo.run import folder as run_folder

    config = run_folder.reopen(run.folder).config
    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    prepared = prepare(config.data, tokenizer, config.train.seed, cache=cache_folder("data"))
    pairs = list(prepared.heldout[:count])
    ends = prepared.template.end_of_turn or frozenset({int(tokenizer.eos_token_id)})
    prompts = [(str(tokenizer.decode(pair.prompt)), pair.prompt) for pair in pairs]
    return Heldout(pairs, prompts, frozenset(ends), tokenizer)


def texts_to_tokenise(tokenizer: Any) -> list[str]:
    """Rendered conversations around tricky texts, where the tokenizer has a template; plain ones otherwise."""
    if not tokenizer.chat_template:
        return [text for text in TRICKY if text]
    template = own_template(tokenizer)
    return [template.prompt(tokenizer, [Message("user", text)]) for text in TRICKY]
