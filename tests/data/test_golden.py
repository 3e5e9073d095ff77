"""Real tokenizers: ids are those of the tokenizer's own apply_chat_template, with the templates of real models."""

import json
from pathlib import Path

import pytest
from data import real_tokenizers
from materials import MATERIAL, llama_cpp

from qdpo.data.pairs import Message, Pair
from qdpo.data.template import load_template
from qdpo.data.tokenise import Tokeniser
from qdpo.data.words import sentencepiece_words

CONVERSATIONS = {
    "one question": [("user", "What is the capital of France?"), ("assistant", "Paris.")],
    "system": [("system", "Be brief."), ("user", "Why?"), ("assistant", "Because  of\n\nspaces.")],
    "three turns": [
        ("user", "What's the result of 5 + 5?"),
        ("assistant", "The result of 5 + 5 is 10."),
        ("user", "And 8 x 8?"),
        ("assistant", "64, because 8 x 8 equals 64."),
    ],
    "other scripts": [("user", "Što je 東京? مرحبا 🙂‍↔️"), ("assistant", "Grad. — العاصمة\u200f ☕️ 𝔘")],
    "code": [("user", "\tdef f(x):\n\t\treturn x  # <b>"), ("assistant", "```py\nf(1)\n```\n")],
}
TEMPLATES = ["named zephyr", "named mistral", "named chatml", "chujie/zephyr.jinja", "chujie/chatml.jinja"]
TEMPLATES += ["chujie/mistral-instruct.jinja", "chujie/llama-3-instruct.jinja", "chujie/qwen2.5-instruct.jinja"]
TEMPLATES += ["llamacpp/Qwen-Qwen2.5-7B-Instruct.jinja", "llamacpp/meta-llama-Llama-3.1-8B-Instruct.jinja"]
TEMPLATES += ["llamacpp/microsoft-Phi-3.5-mini-instruct.jinja"]


@pytest.mark.parametrize("template_name", TEMPLATES)
@pytest.mark.parametrize("tokenizer_name", real_tokenizers.NAMES)
def test_ids_are_the_tokenizers_own(tokenizer_name: str, template_name: str, tmp_path: Path):
    tokenizer = real_tokenizers.load(tokenizer_name)
    kind, _, name = template_name.partition("/")
    wanted = template_name.removeprefix("named ")
    if kind == "llamacpp":
        wanted = str(llama_cpp(f"templates/{name}"))
    if kind == "chujie":
        # They are laid out for reading; their author removes the layout before use.
        wanted = str(tmp_path / name)
        source = (MATERIAL / "templates_chujie" / name).read_text()
        Path(wanted).write_text(source.replace("    ", "").replace("\n", ""))
    template = load_template(wanted, tokenizer)
    tokeniser = Tokeniser(tokenizer, template, 10_000, 5_000)
    for turns in CONVERSATIONS.values():
        if turns[0][0] == "system" and not template.takes_system:
            continue
        messages = [Message(role, text) for role, text in turns]
        pair = Pair(0, tuple(messages[:-1]), (messages[-1],), (Message("assistant", "Something else."),))
        result = tokeniser(pair)
        theirs = [{"role": role, "content": text} for role, text in turns]
        expected = tokenizer.apply_chat_template(theirs, chat_template=template.source, return_dict=False)
        # A template that leaves BOS to the tokenizer gets it from us.
        if tokeniser.bos is not None and expected[0] != tokeniser.bos:
            expected = [tokeniser.bos, *expected]
        assert result.prompt + result.chosen == expected
        start = tokenizer.apply_chat_template(
            theirs[:-1], chat_template=template.source, add_generation_prompt=True, return_dict=False
        )
        if tokeniser.bos is not None and start[0] != tokeniser.bos:
            start = [tokeniser.bos, *start]
        # The prompt is what a generation starts from, except for tokens that merge with the answer.
        assert result.prompt == start[: len(result.prompt)]


def test_mistrals_own_sample():
    """The ids that mistral-common publishes for this conversation."""
    folder = MATERIAL / "mistral"
    tokenizer = real_tokenizers.load("mistral-v1")
    template = load_template(str(folder / "v1_spm.jinja"), tokenizer)
    turns = json.loads((folder / "sample.json").read_text())["messages"]
    messages = [Message(turn["role"], turn["content"]) for turn in turns]
    tokeniser = Tokeniser(tokenizer, template, 10_000, 5_000)
    answers = [(Message("assistant", text),) for text in ("You are welcome!", "Bye.")]
    expected = json.loads((folder / "tokens_v1.json").read_text())["tokens"]
    assert tokeniser(Pair(0, tuple(messages), *answers)).prompt == expected


@pytest.mark.parametrize("name", ["mistral-v1", "llama-spm"])
def test_the_tokenizers_of_these_tests_are_right(name: str):
    """llama.cpp publishes texts and their ids for Llama's vocabulary; Mistral's is held to its own sample above."""
    tokenizer = real_tokenizers.load(name)
    assert tokenizer.decode(tokenizer.encode("Hello  world é🙂")[1:]) == "Hello  world é🙂"
    words = sentencepiece_words(tokenizer)
    assert words is not None, "these are the tokenizers that are encoded word by word"
    tricky = ["a  b", " a", "</s> x\n\n y</s>", "é\u200b🙂  ", "   ", "", "▁x▁ y", "<s><s>a", "\t\n a\x00b", "x" * 300]
    for text in [*tricky, *(f"{a}</s>{b}" for a in tricky for b in tricky)]:
        assert words.encode(text) == tokenizer.encode(text, add_special_tokens=False), text
    if name == "llama-spm":
        texts = llama_cpp("ggml-vocab-llama-spm.gguf.inp").read_text().split("\n__ggml_vocab_test__\n")
        ids = [
            [int(i) for i in line.split()]
            for line in llama_cpp("ggml-vocab-llama-spm.gguf.out").read_text().split("\n")
        ]
        checked = 0
        for text, expected in zip(texts, ids, strict=False):
            if text.strip():
                assert tokenizer.encode(text, add_special_tokens=False) == expected, text
                checked += 1
        assert checked > 20
