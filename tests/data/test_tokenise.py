"""Token ids of pairs: BOS, boundary merges, the cutting rules, and rows that spell out special tokens."""

import pytest
from data.toy_tokenizers import byte_level

from qdpo.data.pairs import Message, Pair
from qdpo.data.pieces import BadRow
from qdpo.data.template import Template, load_template
from qdpo.data.tokenise import CutAway, Tokeniser, common_prefix


def pair(prompt, chosen: str = "yes", rejected: str = "no", row: int = 3) -> Pair:
    turns = [("user", prompt)] if isinstance(prompt, str) and prompt else prompt or []
    answers = [(Message("assistant", text),) for text in (chosen, rejected)]
    return Pair(row, tuple(Message(role, text) for role, text in turns), *answers)


CHATML = ("<|im_start|>", "<|im_end|>")


def turns_by_bos(writes: bool):
    """A tokenizer whose BOS is ChatML's `<|im_start|>`, which it writes by itself or does not."""
    tokenizer = byte_level(bos=CHATML[0], eos=CHATML[1])
    if not writes:
        from tokenizers.processors import ByteLevel

        tokenizer.backend_tokenizer.post_processor = ByteLevel()
    return tokenizer


def tokeniser(template: str = "zephyr", max_length: int = 1000, max_prompt: int = 500, tokenizer=None) -> Tokeniser:
    tokenizer = tokenizer or byte_level()
    return Tokeniser(tokenizer, load_template(template, tokenizer), max_length, max_prompt)


def test_common_prefix():
    assert common_prefix([1, 2, 3], [1, 2, 4], [1, 2]) == 2
    assert common_prefix([1], [2]) == 0
    assert common_prefix([], [1]) == 0


def test_prompt_and_completions_are_the_whole_texts():
    t = tokeniser()
    result = t(pair("What is the capital?"))
    text = "<|user|>\nWhat is the capital?</s>\n<|assistant|>\n"
    assert result.row == 3
    assert result.prompt == t.tokenizer.encode(text)  # with BOS, which the tokenizer writes
    assert result.prompt[0] == t.tokenizer.bos_token_id
    for ids, said in ((result.chosen, "yes"), (result.rejected, "no")):
        assert ids == t.tokenizer.encode(f"{said}</s>\n", add_special_tokens=False)
        assert ids.count(t.tokenizer.eos_token_id) == 1
    assert not t.cuts


def test_a_batch_is_the_same_as_one_by_one():
    t = tokeniser(max_length=60, max_prompt=30)
    pairs = [pair("one " * n, "yes " * n, "no " * n, row=n) for n in range(1, 25)]
    alone = tokeniser(max_length=60, max_prompt=30)
    assert [result[0] for result in t.batch(pairs)] == [alone(p) for p in pairs]
    assert t.cuts == alone.cuts
    assert t.cuts["prompt"] > 0


@pytest.mark.parametrize(
    ("own", "template", "expected"),
    [(True, "zephyr", 1), (True, "mistral", 1), (False, "zephyr", 0), (False, "mistral", 1)],
)
def test_one_bos_at_most(own: bool, template: str, expected: int):
    tokenizer = byte_level()
    if not own:  # like Qwen's: defined, never written
        from tokenizers.processors import ByteLevel

        tokenizer.backend_tokenizer.post_processor = ByteLevel()
    t = tokeniser(template, tokenizer=tokenizer)
    assert t.bos == (tokenizer.bos_token_id if expected else None)
    result = t(pair("hello"))
    assert (result.prompt + result.chosen).count(tokenizer.bos_token_id) == expected


@pytest.mark.parametrize("writes", [True, False], ids=["written by the tokenizer", "by the template alone"])
def test_a_bos_that_opens_every_turn_is_written_once_a_turn(writes: bool):
    """As SmolLM2-Instruct has it, and every model made with TRL's `setup_chat_format`."""
    t, plain = tokeniser("chatml", tokenizer=turns_by_bos(writes)), tokeniser("chatml", tokenizer=byte_level(*CHATML))
    question = [("system", "Be brief."), ("user", "one"), ("assistant", "two"), ("user", "three")]
    result, same = t(pair(question)), plain(pair(question))
    for name in ("prompt", "chosen", "rejected"):
        mine, other = (k.tokenizer.decode(getattr(r, name)) for k, r in ((t, result), (plain, same)))
        assert mine == other.removeprefix("<s>")
    assert result.prompt.count(t.tokenizer.bos_token_id) == 5
    assert t.tokenizer.bos_token_id not in result.chosen


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        (pair("a <|im_start|>"), "the prompt"),
        (pair("a", "<|im_start|>b"), "`chosen`"),
        (pair("a", "b", "<|im_start|>"), "`rejected`"),
    ],
)
def test_texts_that_spell_out_a_bos_that_opens_turns(broken: Pair, name: str):
    for writes in (True, False):
        with pytest.raises(BadRow, match=f"{name} contains the text of the BOS token"):
            tokeniser("chatml", tokenizer=turns_by_bos(writes))(broken)


def test_no_bos_at_all():
    t = tokeniser(tokenizer=byte_level(bos=None))
    assert t.bos is None
    assert t(pair("hello")).prompt == t.tokenizer.encode("<|user|>\nhello</s>\n<|assistant|>\n")
    with pytest.raises(BadRow, match="no BOS to condition on"):
        tokeniser("none", tokenizer=byte_level(bos=None))(pair(""))


def test_an_empty_prompt_is_bos_alone():
    t = tokeniser("none")
    result = t(pair("", "Yes.", "No."))
    assert result.prompt == [t.tokenizer.bos_token_id]
    assert t.tokenizer.decode(result.chosen) == "Yes.</s>"


def test_tokens_that_merge_across_the_boundary_belong_to_the_answers():
    t = tokeniser("none")
    # "Is it " + "the capital": the byte-level pre-tokenizer takes the space into the next word
    result = t(pair("Is it ", "the capital", "the suitcase"))
    whole = t.encode("Is it the capital</s>")
    assert result.prompt + result.chosen == whole
    assert result.prompt == whole[: len(result.prompt)]
    assert t.encode("Is it ")[: len(result.prompt)] == result.prompt
    assert t.tokenizer.decode(result.chosen) == " the capital</s>"
    assert t.cuts["boundary"] == 1
    assert t.merge is not None
    assert "Ġ" in t.merge


def test_long_completions_are_cut_on_the_right():
    t = tokeniser(max_length=40, max_prompt=30)
    short = t(pair("hello", "yes", "no"))
    assert not t.cuts
    room = 40 - len(short.prompt)
    result = t(pair("hello", "no " * 50, "yes"))
    assert len(result.chosen) == room
    assert result.chosen == t.encode("<|user|>\nhello</s>\n<|assistant|>\n" + "no " * 50)[len(short.prompt) :][:room]
    assert t.tokenizer.eos_token_id not in result.chosen
    assert t.tokenizer.eos_token_id in result.rejected
    assert t.cuts == {"chosen": 1}


def test_old_turns_go_first():
    t = tokeniser(max_prompt=40)
    turns = [("system", "s"), ("user", "one " * 20), ("assistant", "two " * 20), ("user", "three")]
    result = t(pair(turns))
    assert result.prompt == t.encode("<|system|>\ns</s>\n<|user|>\nthree</s>\n<|assistant|>\n")
    assert t.cuts == {"prompt": 1}


def test_a_long_question_keeps_bos_and_the_header():
    t = tokeniser(max_prompt=40)
    result = t(pair([("system", "s"), ("user", "one two " * 60 + "three")]))
    assert len(result.prompt) == 40
    text = t.tokenizer.decode(result.prompt)
    assert text.startswith("<s><|system|>\ns</s>\n<|user|>\n")
    assert text.endswith("three</s>\n<|assistant|>\n")


def test_a_long_header_keeps_bos_alone():
    t = tokeniser(max_prompt=20)
    result = t(pair([("system", "one two three four five " * 10), ("user", "six " * 40)]))
    assert len(result.prompt) == 20
    assert result.prompt[0] == t.bos
    assert t.tokenizer.decode(result.prompt).endswith("six </s>\n<|assistant|>\n")


def test_system_messages_that_are_cut_are_counted():
    """One that takes more than half of the room is not kept; turns that go before it are, and are no loss of it."""
    long = "The capital of France is Paris. " * 20
    turns = [("user", "one " * 30), ("assistant", "two " * 30), ("user", "three")]
    for template, system, cut in (
        ("zephyr", long, True),
        ("zephyr", "Be brief.", False),
        ("zephyr", "", False),
        ("none", "Be brief.", True),
    ):
        t = tokeniser(template, max_prompt=64)
        result = t(pair([("system", system), *turns]))
        text = t.tokenizer.decode(result.prompt)
        assert t.cuts["prompt"] == 1
        assert (t.cuts["system message"], system not in text) == (cut, cut), (template, system)
    t = tokeniser("zephyr", max_prompt=64)
    t(pair([("user", "The capital of France is Paris. " * 20)]))
    assert t.cuts == {"prompt": 1}, "without a system message none is cut"


def test_long_plain_prompts_keep_bos_and_the_newest_tokens():
    t = tokeniser("none", max_prompt=10)
    result = t(pair("one two three four five six seven eight nine ten eleven " * 3))
    full = t.encode("one two three four five six seven eight nine ten eleven " * 3)
    kept = [i for i in full if True][1:]
    assert result.prompt[0] == t.bos
    assert len(result.prompt) == 10
    # the last token of the prompt, a space, was taken by the answer
    assert kept[-10:-1] == result.prompt[1:]
    assert t.cuts == {"prompt": 1, "boundary": 1}


def test_a_merge_is_not_put_back_when_turns_are_dropped():
    tokenizer = byte_level()
    turn = "{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' }}\n"
    source = f"{{% for m in messages %}}{turn}{{% endfor %}}{{% if add_generation_prompt %}}assistant: {{% endif %}}"
    t = Tokeniser(tokenizer, Template(source, "test", frozenset({tokenizer.eos_token_id})), 200, 20)
    result = t(pair([("user", "one " * 20), ("assistant", "two"), ("user", "three")], "the", "a"))
    assert t.cuts == {"prompt": 1, "boundary": 1}
    assert tokenizer.decode(result.prompt + result.chosen) == "<s>user: three\nassistant: the</s>\n"
    assert result.prompt + result.chosen == t.encode("user: three\nassistant: the</s>\n")


def test_pairs_of_which_nothing_is_left():
    t = tokeniser(max_length=30, max_prompt=29)
    with pytest.raises(CutAway, match="identical after cutting"):
        t(pair("hello", "yes " * 50 + "one", "yes " * 50 + "two"))
    t = tokeniser(max_length=20, max_prompt=20)
    with pytest.raises(CutAway, match="no token left"):
        t(pair("hello " * 30))
    assert not t.cuts, "a pair that is left out is not counted as cut too"


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (pair("hello", "yes </s> and", "no"), "`chosen` contains the text of the end-of-turn token"),
        (pair("hello", "yes", "no </s>"), "`rejected` contains the text of the end-of-turn token"),
        (pair("hello <s>"), "the prompt contains the text of the BOS token"),
        (pair("hello", "<s>yes"), "`chosen` contains the text of the BOS token"),
    ],
)
def test_texts_that_spell_out_special_tokens(broken: Pair, reason: str):
    with pytest.raises(BadRow, match=reason):
        tokeniser()(broken)


def test_answers_that_a_template_trims_to_the_same():
    t = tokeniser("llama-3", tokenizer=byte_level("<|eot_id|>"))
    with pytest.raises(BadRow, match="identical in tokens"):
        t(pair("hello", "yes", " yes"))
