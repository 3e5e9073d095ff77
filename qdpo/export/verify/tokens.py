"""Does the artefact turn text into the tokens that the model was trained on?"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from transformers import AutoTokenizer

from qdpo.data.pairs import Message, TokenPair
from qdpo.data.template import Template
from qdpo.errors import DataError
from qdpo.export.gguf.vocabulary import read_template
from qdpo.export.pairs import Heldout
from qdpo.export.source import TrainedRun
from qdpo.export.verify.checks import Check, from_problems
from qdpo.export.verify.scorers import Encode
from qdpo.export.verify.target import Target
from qdpo.files import digest_of
from qdpo.run.tokenizer import TRICKY


def check_tokens(target: Target, heldout: Heldout | None) -> Check:
    """Tokenise held-out conversations and tricky texts by the artefact's own tokenizer.

    Conversations must give the training ids. So must tricky texts, unless the conversion has told of a difference.
    """
    name = "same tokens"
    encode, engine = target.encoder()
    if encode is None:
        return Check(name, None, engine)
    run = target.run
    tokenizer = heldout.tokenizer if heldout else AutoTokenizer.from_pretrained(run.adapter)

    def reference(text: str) -> list[int]:
        return [int(i) for i in tokenizer.encode(text, add_special_tokens=False)]

    problems = template_problems(run)
    sequences = [ids for pair in (heldout.pairs if heldout else []) for ids in _sequences(pair)]
    exact = 0
    for ids in sequences:
        text = text_of(ids, tokenizer, reference)
        wanted = reference(text)
        exact += wanted == ids
        if (own := encode(text)) != wanted:
            problems.append(f"{text[:40]!r} gives {own[:8]}..., trained on {wanted[:8]}...")
    tricky = tricky_texts(tokenizer, read_template(run.adapter))
    wrong = [text for text in tricky if encode(text) != reference(text)]
    shown = ", ".join(repr(text[-24:]) for text in wrong[:3])
    told = f"{len(tricky) - len(wrong)} of {len(tricky)} tricky texts" + (f" (not {shown})" if wrong else "")
    if wrong and engine == "transformers":
        problems.append(told)
    good = f"{exact} of {len(sequences)} held-out sequences give the training ids, {told} the tokenizer's, by {engine}"
    return from_problems(name, problems, good)


def tricky_texts(tokenizer: Any, template: str | None) -> list[str]:
    """Conversations around tricky texts, as the chat template renders them; plain texts where there is none."""
    if template is None:
        return [text for text in TRICKY if text]
    rendering, texts = Template(template, "the run's", frozenset()), []
    for text in TRICKY:
        with contextlib.suppress(DataError):  # a template may refuse a message without text
            texts.append(rendering.prompt(tokenizer, [Message("user", text)]))
    return texts


def text_of(ids: list[int], tokenizer: Any, reference: Encode) -> str:
    """A text that the run's tokenizer turns into these ids, where there is one; else what they decode to.

    Decoding a sentencepiece-like tokenizer leaves the space that it puts before each stretch of text.
    """
    decoded = str(tokenizer.decode(ids))
    squeezed = decoded
    for special in tokenizer.all_special_tokens:
        squeezed = squeezed.replace(f"{special} ", special)
    return squeezed if reference(squeezed) == ids else decoded


def template_problems(run: TrainedRun) -> list[str]:
    """Whether the template beside the adapter, which exports carry, is the one that the pairs were rendered with."""
    recorded = run.record.get("tokenizer", {}).get("template_sha256")
    template = read_template(run.adapter)
    if recorded in (None, digest_of(["plain text"]), digest_of([template or "plain text"])):
        return []
    return [
        "the tokenizer's chat template is not the one that the run was trained with "
        f"(SHA-256 {json.dumps(recorded)[:18]}...)"
    ]


def _sequences(pair: TokenPair) -> list[list[int]]:
    return [[*pair.prompt, *pair.chosen], [*pair.prompt, *pair.rejected]]
