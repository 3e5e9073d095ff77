"""Faulty chat templates and tokenizers: found on a small conversation, before data is read or a model loaded."""

import time

import pytest
from data.toy_tokenizers import byte_level, words
from tokenizers import Tokenizer, models, normalizers

from qdpo.data.template import NAMED, load_template
from qdpo.errors import QdpoError

ZEPHYR = NAMED["zephyr"]
SAID = "{{ message['content'] }}"

TEMPLATES = {
    "empty": ("  \n", ["is empty"]),
    "unclosed loop": ("{% for m in messages %}{{ m.content }}", ["not valid Jinja", "line 1", "endfor"]),
    "unclosed expression": ("{{ messages", ["not valid Jinja", "line 1"]),
    "unknown tag": ("{% frobnicate %}" + ZEPHYR, ["not valid Jinja", "frobnicate"]),
    "unknown filter": (ZEPHYR.replace(SAID, "{{ message['content'] | shout }}"), ["shout"]),
    "undefined function": (ZEPHYR + "{{ nothing() }}", ["cannot render", "nothing"]),
    "refuses everything": ("{{ raise_exception('never') }}", ["cannot render", "never"]),
    "endless": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", ["longer than 2 s"]),
    "range beyond the sandbox": ("{% for a in range(10 ** 9) %}{% endfor %}" + ZEPHYR, ["cannot render", "range"]),
    "2 MB of text": (ZEPHYR + "{{ 'x' * 2000000 }}", ["longer than 1,048,576 characters"]),
    "growing text": (ZEPHYR + "{% for a in range(99999) %}{{ 'x' * 99 }}{% endfor %}", ["longer than 1,048,576"]),
    "all memory": (ZEPHYR + "{{ ('x' * (10 ** 10)) | length }}", ["memory"]),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", ["recursion"]),
    "reaches for the system": (ZEPHYR + "{{ ''.__class__.__mro__ }}", ["cannot render", "unsafe"]),
    "changes the messages": ("{{ messages.append(1) }}" + ZEPHYR, ["cannot render"]),
    "leaves out the user": (ZEPHYR.replace(SAID, f"{{% if loop.last %}}{SAID}{{% endif %}}"), ["leaves out the user"]),
    "leaves out the answer": (
        ZEPHYR.replace(SAID, f"{{% if message['role'] == 'user' %}}{SAID}{{% endif %}}"),
        ["leaves out the assistant"],
    ),
    "never ends a turn": (ZEPHYR.replace("{{ eos_token }}", ""), ["would never learn to stop"]),
    "two BOS": ("{{ bos_token }}{{ bos_token }}" + ZEPHYR, ["writes 2 BOS"]),
    "BOS in every turn": (ZEPHYR.replace("<|{{", "{{ bos_token }}<|{{"), ["BOS"]),
    "BOS after a line break": ("\n\n{{ bos_token }}" + ZEPHYR, ["writes its BOS after other text"]),
    "another prompt with an answer": (
        "{{ 'question' if add_generation_prompt else 'dialogue' }}: " + ZEPHYR,
        ["changes the prompt when an answer follows"],
    ),
    "too long": (ZEPHYR + "{# " + "x" * 2_000_000 + " #}", ["has 2,0"]),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_faulty_template(name: str):
    source, parts = TEMPLATES[name]
    started = time.monotonic()
    with pytest.raises(QdpoError) as caught:
        load_template("auto", byte_level(chat_template=source))
    said = f"{caught.value.message}\n{caught.value.hint}"
    assert caught.value.exit_code == 65, said
    assert "the chat template (the tokenizer's)" in said
    for part in parts:
        assert part in said, said
    assert "data.template" in str(caught.value.hint)
    assert time.monotonic() - started < 30


def swallowing() -> object:
    tokenizer = byte_level()
    from tokenizers import Regex

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(".+"), "")
    return tokenizer


def deaf() -> object:
    tokenizer = byte_level()
    from tokenizers import Regex

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex("[a-m]"), "")
    return tokenizer


def without_unknown() -> object:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="?")), eos_token="</s>"
    )


def bos_at_the_end() -> object:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_level()
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A <s>", special_tokens=[("<s>", bos)])
    return tokenizer


TOKENIZERS = {
    "knows no English": (lambda: words(["un", "deux"]), "zephyr", 65, "does not know"),
    "gives nothing": (swallowing, "zephyr", 65, "gives no tokens"),
    "loses letters": (deaf, "zephyr", 65, "loses text"),
    "cannot encode": (without_unknown, "zephyr", 65, "cannot encode"),
    "BOS at both ends": (bos_at_the_end, "zephyr", 65, "writes its BOS after"),
    "no EOS, plain text": (lambda: byte_level(eos=None), "none", 78, "end-of-sequence"),
    "no EOS, a template that needs one": (lambda: byte_level(eos=None), "zephyr", 65, "never learn to stop"),
    "no template": (byte_level, "auto", 78, "zephyr, chatml, gemma-chatml, llama-3, mistral"),
    "templates of which none is the default": (
        lambda: byte_level(chat_template={"tool_use": ZEPHYR, "rag": ZEPHYR}),
        "auto",
        78,
        "no chat template",
    ),
    "unknown name": (byte_level, "zephir", 78, "no template or file 'zephir'"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_faulty_tokenizer(name: str):
    make, wanted, code, part = TOKENIZERS[name]
    with pytest.raises(QdpoError) as caught:
        load_template(wanted, make())
    assert caught.value.exit_code == code
    assert part in f"{caught.value.message}\n{caught.value.hint}"


def test_a_template_file_that_is_not_text(tmp_path):
    (tmp_path / "a.jinja").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(QdpoError, match="cannot be read") as caught:
        load_template(str(tmp_path / "a.jinja"), byte_level())
    assert caught.value.exit_code == 65


def test_there_are_enough():
    assert len(TEMPLATES) + len(TOKENIZERS) >= 20


def test_pad_is_eos_and_harmless():
    """Nothing is padded: pad = EOS, which made other tools forget the end of turn, is learned like any EOS."""
    from qdpo.data.pairs import Message, Pair
    from qdpo.data.tokenise import Tokeniser

    tokenizer = byte_level(pad_token="</s>")
    tokeniser = Tokeniser(tokenizer, load_template("zephyr", tokenizer), 100, 50)
    answers = [(Message("assistant", text),) for text in ("yes", "no")]
    pair = tokeniser(Pair(0, (Message("user", "q"),), *answers))
    for ids in (pair.chosen, pair.rejected):
        assert ids.count(tokenizer.eos_token_id) == 1
