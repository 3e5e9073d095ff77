"""A prompt as people read it: turns with the words for who speaks, and no marks of a template."""

import pytest
from data import real_tokenizers
from data.toy_tokenizers import byte_level

from qdpo.data.named import NAMED
from qdpo.data.pairs import Message
from qdpo.data.template import own_template
from qdpo.data.turns import spoken

CHAT = [
    Message("user", "What is\nthe capital?"),
    Message("assistant", "Paris."),
    Message("user", "And of <b>Peru</b>?"),
]
SYSTEM = Message("system", "Be brief.")
TOLD = "user: What is\nthe capital?\nassistant: Paris.\nuser: And of <b>Peru</b>?"


def prompt_ids(tokenizer, messages: list[Message]) -> list[int]:
    return tokenizer.encode(own_template(tokenizer).prompt(tokenizer, messages), add_special_tokens=False)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("kind", ["ordinary", "special", "mistral-v1"])
def test_turns_of_every_shipped_template(name: str, kind: str):
    extra = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|user|>", "<|assistant|>") if kind == "special" else ()
    tokenizer = real_tokenizers.load(kind) if kind == "mistral-v1" else byte_level(*extra)
    tokenizer.chat_template = NAMED[name]
    assert spoken(tokenizer, prompt_ids(tokenizer, CHAT)) == TOLD
    assert spoken(tokenizer, prompt_ids(tokenizer, CHAT[:1])) == "user: What is\nthe capital?"
    if name != "mistral":  # it writes the system message into the first question
        assert spoken(tokenizer, prompt_ids(tokenizer, [SYSTEM, *CHAT])) == f"system: Be brief.\n{TOLD}"


def test_plain_text_is_left_as_it_is():
    tokenizer = byte_level()
    ids = tokenizer.encode("user: a <|user|> [b]\n\nc")
    assert spoken(tokenizer, ids) == "user: a <|user|> [b]\n\nc"
    tokenizer.chat_template = NAMED["chatml"]
    assert spoken(tokenizer, tokenizer.encode("The trophy is\n too small")) == "The trophy is\n too small"


def test_a_template_without_marks_or_that_fails_leaves_the_text():
    for template in ("{% for m in messages %}{{ m['content'] }} {% endfor %}", "{{ raise_exception('no') }}", "{%"):
        tokenizer = byte_level()
        tokenizer.chat_template = template
        assert spoken(tokenizer, tokenizer.encode("one two")) == "one two"
