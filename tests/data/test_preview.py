"""The preview shows every token, and where spaces and line ends are, whatever way the vocabulary writes them."""

import pytest
from data import real_tokenizers
from data.toy_tokenizers import byte_level
from transformers import PreTrainedTokenizerBase

from qdpo.data.pairs import TokenPair
from qdpo.data.preview import preview
from qdpo.data.template import load_template

TEXT = "The  cat sat.\n\n    def f(x):\t# new\r\n on it"


def load(name: str) -> PreTrainedTokenizerBase:
    return byte_level() if name == "byte-level" else real_tokenizers.load(name)


def shown(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The line of a chosen answer, without its head."""
    pair = TokenPair(7, [0], tokenizer.encode(text, add_special_tokens=False), [0])
    head, _, chosen, _ = preview(pair, tokenizer, load_template("zephyr", tokenizer), "line")
    assert head.plain == "line 7"
    return chosen.plain.partition(": ")[2]


@pytest.mark.parametrize("name", ["byte-level", *real_tokenizers.NAMES])
def test_spaces_and_line_ends_are_seen(name: str):
    found = shown(load(name), TEXT)
    marks = str.maketrans("·⏎⇥␍", " \n\t\r")
    # sentencepiece puts a space in front of a text
    assert found[1:-1].replace("] [", "").translate(marks).removeprefix(" ") == TEXT
    assert not set(found) & set("▁ĠĊ<")
    assert "·" in found


@pytest.mark.parametrize(
    ("name", "text", "tokens"),
    [
        ("mistral-v1", "The cat", "[·The] [·cat]"),
        ("mistral-v1", "a\nb", "[·a] [⏎] [b]"),
        ("mistral-v1", "a   b", "[·a] [··] [·b]"),
        ("mistral-v1", "日 🥸</s>", "[·] [日] [·] [<0xF0>] [<0x9F>] [<0xA5>] [<0xB8>] [EOS </s>]"),
        ("gpt2", "The cat", "[The] [·cat]"),
        ("gpt2", "日", "[æĹ] [¥]"),
    ],
)
def test_tokens_are_told_apart(name: str, text: str, tokens: str):
    assert shown(load(name), text) == tokens
