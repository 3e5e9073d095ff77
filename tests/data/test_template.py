"""Chat templates: the same text as transformers', tried out before use, refused when faulty."""

import pytest
from data.toy_tokenizers import byte_level

from qdpo.data.pairs import Message, Pair
from qdpo.data.pieces import BadRow
from qdpo.data.renderer import Renderer
from qdpo.data.template import NAMED, Template, load_template
from qdpo.errors import ConfigError, DataError

CONVERSATIONS = [
    [("user", "hello")],
    [("system", "Be brief."), ("user", " What? ")],
    [("system", ""), ("user", "a\nb")],
    [("user", "one"), ("assistant", "two"), ("user", "three")],
    [("system", "s"), ("user", "é 🙂 {{ x }}"), ("assistant", "{% if %}"), ("user", "<b>&amp;")],
]


def messages(conversation: list[tuple[str, str]]) -> list[Message]:
    return [Message(role, text) for role, text in conversation]


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_named_templates_render_as_transformers_does(name: str, conversation: list[tuple[str, str]]):
    tokenizer = byte_level("<|im_end|>", "<|eot_id|>")
    template = load_template(name, tokenizer)
    theirs = [{"role": role, "content": text} for role, text in conversation]
    expected = tokenizer.apply_chat_template(
        theirs, chat_template=NAMED[name], tokenize=False, add_generation_prompt=True
    )
    assert template.prompt(tokenizer, messages(conversation)) == expected
    theirs.append({"role": "assistant", "content": "done"})
    expected = tokenizer.apply_chat_template(theirs, chat_template=NAMED[name], tokenize=False)
    assert template.conversation(tokenizer, messages(conversation), messages([("assistant", "done")])) == expected


def test_zephyr_with_the_handbooks_empty_system_message():
    tokenizer = byte_level()
    prompt = load_template("zephyr", tokenizer).prompt(tokenizer, messages([("system", ""), ("user", "Hi")]))
    assert prompt == "<|system|>\n</s>\n<|user|>\nHi</s>\n<|assistant|>\n"


def test_mistral_puts_the_system_message_before_the_question():
    tokenizer = byte_level()
    template = load_template("mistral", tokenizer)
    assert template.prompt(tokenizer, messages([("system", "S"), ("user", "Q")])) == "<s>[INST] S\n\nQ [/INST]"
    assert template.prompt(tokenizer, messages([("system", ""), ("user", "Q")])) == "<s>[INST] Q [/INST]"


@pytest.mark.parametrize(
    ("name", "extra", "end"),
    [
        ("zephyr", (), "</s>"),
        ("chatml", ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
        ("gemma-chatml", ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
        ("llama-3", ("<|eot_id|>",), "<|eot_id|>"),
        ("mistral", (), "</s>"),
    ],
)
def test_what_ends_a_turn_is_found(name: str, extra: tuple[str, ...], end: str):
    tokenizer = byte_level(*extra)
    assert load_template(name, tokenizer).end_of_turn == {tokenizer.convert_tokens_to_ids(end)}


SMOL = (  # SmolLM2-135M-Instruct's own, with its system message
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML = NAMED["chatml"]
BY_BOS = {
    "SmolLM2": SMOL,
    "chatml": CHATML,
    "the role's name after bos_token": CHATML.replace("<|im_start|>", "{{ bos_token }}"),
    "marks of its own": CHATML.replace("<|im_start|>{{ message['role'] }}\n", "<|im_start|>[{{ message['role'] }}]"),
}
IN_ADDITION = {
    "before all": ("{{ bos_token }}" + CHATML, "writes 3 BOS"),
    "as text before all": ("<|im_start|>" + CHATML, "writes 3 BOS"),
    "twice a turn": (CHATML.replace("<|im_start|>", "<|im_start|><|im_start|>"), "writes 4 BOS"),
    "beside a mark of the turn": (CHATML.replace("<|im_start|>", "{{ bos_token }}[turn]"), "writes 2 BOS"),
    "in some turns": (CHATML.replace("<|im_start|>{{", "{{ '<|im_start|>' if loop.index < 3 }}{{"), "writes 2 BOS"),
}


@pytest.mark.parametrize("name", BY_BOS)
def test_a_bos_that_opens_every_turn_is_no_fault(name: str):
    tokenizer = byte_level(bos="<|im_start|>", eos="<|im_end|>")
    template = load_template("auto", byte_level(bos="<|im_start|>", eos="<|im_end|>", chat_template=BY_BOS[name]))
    assert template.bos_opens_turns
    assert template.end_of_turn == {tokenizer.eos_token_id}
    assert not load_template("zephyr", tokenizer).bos_opens_turns


@pytest.mark.parametrize("name", IN_ADDITION)
def test_a_bos_beside_those_that_open_turns_is_a_fault(name: str):
    source, said = IN_ADDITION[name]
    with pytest.raises(DataError, match=said):
        load_template("auto", byte_level(bos="<|im_start|>", eos="<|im_end|>", chat_template=source))


def test_an_end_of_turn_in_ordinary_tokens_is_warned_of(capsys: pytest.CaptureFixture[str]):
    assert load_template("chatml", byte_level()).end_of_turn == frozenset()
    assert "no special token of this tokenizer" in capsys.readouterr().err


def test_plain_text():
    tokenizer = byte_level()
    template = load_template("none", tokenizer)
    assert template.end_of_turn == {tokenizer.eos_token_id}
    said = messages([("assistant", "Paris.")])
    assert template.conversation(tokenizer, messages([("user", "Capital?")]), said) == "Capital? Paris.</s>"
    assert template.conversation(tokenizer, messages([("user", "Capital?\n")]), said) == "Capital?\nParis.</s>"
    assert template.conversation(tokenizer, [], said) == "Paris.</s>"
    assert template.prompt(tokenizer, messages([("system", ""), ("user", "Hi")])) == "Hi"
    with pytest.raises(ConfigError, match="end-of-sequence"):
        load_template("none", byte_level(eos=None))


def test_where_a_template_comes_from(tmp_path):
    with pytest.raises(ConfigError, match="no chat template") as caught:
        load_template("auto", byte_level())
    for name in [*NAMED, "none"]:
        assert name in str(caught.value.hint)
    with pytest.raises(ConfigError, match="no template or file 'zephir'"):
        load_template("zephir", byte_level())
    assert load_template("auto", byte_level(chat_template=NAMED["zephyr"])).origin == "the tokenizer's"
    several = byte_level(chat_template={"default": NAMED["zephyr"], "tool_use": "x"})
    assert load_template("auto", several).source == NAMED["zephyr"]
    file = tmp_path / "mine.jinja"
    file.write_text(NAMED["zephyr"], encoding="utf-8-sig")
    found = load_template(str(file), byte_level())
    assert (found.source, found.origin) == (NAMED["zephyr"], str(file))
    assert found.sha256 == load_template("zephyr", byte_level()).sha256
    assert found.sha256 != load_template("mistral", byte_level()).sha256


def test_a_template_that_refuses_a_conversation_makes_a_bad_row():
    source = NAMED["zephyr"].replace(
        "{% for", "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}{% for", 1
    )
    tokenizer = byte_level(chat_template=source)
    template = load_template("auto", tokenizer)
    assert not template.takes_system
    answers = (tuple(messages([("assistant", "a")])), tuple(messages([("assistant", "b")])))
    good = Pair(0, tuple(messages([("user", "q")])), *answers)
    bad = Pair(1, tuple(messages([("system", "s"), ("user", "q")])), *answers)
    first, second, third = template.render(tokenizer, [good, bad, good])
    assert (
        first
        == third
        == ["<|user|>\nq</s>\n<|assistant|>\n"] + [f"<|user|>\nq</s>\n<|assistant|>\n{said}</s>\n" for said in "ab"]
    )
    assert isinstance(second, BadRow)
    assert "no system here" in str(second)
    with pytest.raises(DataError, match="cannot render this conversation: no system here"):
        template.prompt(tokenizer, bad.prompt)


def test_generation_marks_do_not_change_the_text():
    said = "{{ message['content'] }}"
    marked = NAMED["zephyr"].replace(said, f"{{% generation %}}{said}{{% endgeneration %}}")
    assert marked != NAMED["zephyr"]
    tokenizer = byte_level()
    conversation = messages([("user", "q")])
    plain = Template(NAMED["zephyr"], "plain", frozenset()).prompt(tokenizer, conversation)
    assert Template(marked, "marked", frozenset()).prompt(tokenizer, conversation) == plain


def test_a_renderer_that_hung_is_killed_and_serves_again():
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    source = (
        f"{{% for m in messages %}}{{% if m.content == 'hang' %}}{loops}{{% endif %}}{{{{ m.content }}}}{{% endfor %}}"
    )
    renderer = Renderer(source, {}, "hangs", seconds=0.5)
    assert renderer.render([[messages([("user", "x")])]]) == [["x"]]
    first = renderer.process
    with pytest.raises(DataError, match=r"takes longer than 0\.5 s"):
        renderer.render([[messages([("user", "x")])], [messages([("user", "hang")])]])
    assert first.poll() is not None
    assert renderer.render([[messages([("user", "y")])]]) == [["y"]]
    renderer.close()


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
        "{{ messages.append(1) }}",
        "{% include 'CANARY' %}",
        "{{ lipsum.__globals__['os'].popen('touch CANARY').read() }}",
    ],
)
def test_templates_cannot_reach_out(attack: str, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="cannot render"):
        load_template("auto", byte_level(chat_template=attack + NAMED["zephyr"]))
    assert not (tmp_path / "CANARY").exists()
