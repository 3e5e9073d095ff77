"""The Ollama folder: its Go template gives the prompts that the model was trained on."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from export import families, go, toys
from export.toys_gguf import make_run
from materials import MATERIAL, llama_cpp
from transformers import PreTrainedTokenizerFast

from qdpo.data.pairs import Message
from qdpo.data.template import NAMED
from qdpo.errors import UsageError
from qdpo.export.formats import Request
from qdpo.export.go_template import derive, stop_words
from qdpo.export.ollama import write_ollama
from qdpo.export.source import load_run

USER = {"role": "user", "content": "Hello, how are you?"}
TALK = [
    USER,
    {"role": "assistant", "content": "I'm doing great. How can I help you today?"},
    {"role": "user", "content": "I'd like to show off how chat templating works!"},
]
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
CONVERSATIONS = {"user": [USER], "user-assistant-user": TALK, "system-user-assistant-user": [SYSTEM, *TALK]}


def with_template(template: str) -> PreTrainedTokenizerFast:
    tokenizer = toys.byte_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def go_of(template: str, strip: str = "") -> str:
    pieces = derive(with_template(template), strip)
    assert pieces is not None
    return pieces.go()


def jinja(template: str, messages: list[dict[str, str]]) -> str:
    text = with_template(template).apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return str(text)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMED)
def test_own_templates(name: str, conversation: str) -> None:
    messages = CONVERSATIONS[conversation]
    assert go.render(go_of(NAMED[name]), messages) == jinja(NAMED[name], messages)


PUBLISHED = [
    *(f"templates_chujie/{n}.jinja" for n in ("chatml", "gemma-it", "llama-2-chat", "llama-3-instruct")),
    *(f"templates_chujie/{n}.jinja" for n in ("mistral-instruct", "zephyr")),
    *(f"llama.cpp/{n}.jinja" for n in ("google-gemma-2-2b-it", "microsoft-Phi-3.5-mini-instruct")),
]


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates(name: str, conversation: str) -> None:
    if name.startswith("llama.cpp/"):
        template = llama_cpp(name.replace("llama.cpp", "templates")).read_text()
    else:  # written on many lines; their users join them like this
        template = (MATERIAL / name).read_text().replace("    ", "").replace("\n", "")
    messages = CONVERSATIONS[conversation]
    pieces = derive(with_template(template), "")
    assert pieces is not None
    if pieces.system == "nowhere":
        assert "System role not supported" in template
        messages = [message for message in messages if message["role"] != "system"]
    assert go.render(pieces.go(), messages) == jinja(template, messages)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize(
    ("ours", "ollamas"),
    [
        ("templates_chujie/chatml.jinja", "chatml"),
        ("templates_chujie/zephyr.jinja", "zephyr"),
        ("templates_chujie/gemma-it.jinja", "gemma-instruct"),
    ],
)
def test_same_prompts_as_ollamas_own_templates(ours: str, ollamas: str, conversation: str) -> None:
    template = (MATERIAL / ours).read_text().replace("    ", "").replace("\n", "")
    template = template.replace("eos_token", "'</s>'")
    messages = CONVERSATIONS[conversation]
    rendered = go.render(go_of(template, strip="<s>"), messages)
    own = go.render((MATERIAL / "templates_ollama" / f"{ollamas}.gotmpl").read_text(), messages)
    # Their files end after the generation prompt's own line break, where ours follow the Jinja template.
    if ollamas == "gemma-instruct" and conversation.startswith("system"):
        assert rendered.replace("assistant.\n\nHello", "assistant.\nHello").strip() == own.strip()
    else:
        assert rendered.strip() == own.strip()
    expected = MATERIAL / "templates_ollama" / f"testdata.{ollamas}.{conversation}"
    if expected.is_file():
        assert own == expected.read_text(), "the test's renderer is Go's"


def test_content_is_never_interpreted() -> None:
    messages = [{"role": "user", "content": 'say {{ .Role }} and """ and \\n'}]
    assert go.render(go_of(NAMED["chatml"]), messages) == jinja(NAMED["chatml"], messages)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{{ loop.length }}{{ m['content'] }}{% endfor %}",
        "{{ messages[0]['content'] }}",
        "{{ raise_exception('no') }}",
        # ten thousand million turns: rendered in a process that is killed
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_templates_that_cannot_be_taken_apart(template: str) -> None:
    assert derive(with_template(template), "") is None


LATE = (
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set messages = messages[1:] %}"
    "{%- endif %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "[INST]{{ system + '\n\n' if loop.last and system is defined else '' }}{{ m.content }}[/INST]"
    "{%- else %}{{ m.content }}</s>{%- endif %}{%- endfor %}"
)
"""As Mistral Nemo and Small have it: the system message goes into the user's last message."""


def test_system_text_within_the_last_user_message() -> None:
    text = go_of(LATE)
    for messages in (*CONVERSATIONS.values(), [SYSTEM, USER], [SYSTEM, *TALK, TALK[1], USER]):
        assert go.render(text, messages) == jinja(LATE, messages)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (NAMED["chatml"].replace("{% if add", "{{ messages[0]['content'] if false }}{% if add"), ()),
        ("{% for m in messages %}[{{ m.content }}]{% endfor %}", ()),
        (
            "{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}"
            "{% if messages[0].role == 'system' %}<{{ messages[0].content }}>{% endif %}",
            ("that cannot be written in Ollama's syntax",),
        ),
    ],
)
def test_a_system_message_that_would_be_lost_is_told(template: str, told: tuple[str, ...]) -> None:
    pieces = derive(with_template(template), "")
    assert pieces is not None
    assert len(pieces.notes) == len(told)
    assert all(part in note for part, note in zip(told, pieces.notes, strict=True))


PADDED = [
    {"role": "system", "content": "\n Be brief.\t"},
    {"role": "user", "content": "  two\n words \n"},
    {"role": "assistant", "content": " \t"},
    {"role": "user", "content": "\u00e9 \U0001f600\n"},
]


@pytest.mark.parametrize("roles", [(), ("user",), ("system", "assistant"), ("system", "user", "assistant")])
def test_messages_are_trimmed_as_the_template_does(roles: tuple[str, ...]) -> None:
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim if m.role in ROLES else m.content }}</s>"
        "{% endfor %}<|assistant|>"
    ).replace("ROLES", repr(roles))
    pieces = derive(with_template(template), "")
    assert pieces is not None
    assert pieces.trimmed == set(roles)
    assert pieces.notes == ()
    for messages in (PADDED, PADDED[1:], PADDED[1:2]):
        assert go.render(pieces.go(), messages) == jinja(template, messages)


def test_white_space_that_ollama_cannot_follow_is_told() -> None:
    pieces = derive(with_template(NAMED["chatml"].replace("['content']", "['content'].rstrip()")), "")
    assert pieces is not None
    assert "white space around messages (system, user, assistant)" in pieces.notes[0]


def test_reasoning_that_is_left_out_of_earlier_answers_is_told() -> None:
    template = NAMED["chatml"].replace("message['content']", "message['content'].split('</think>')[-1]")
    pieces = derive(with_template(template), "")
    assert pieces is not None
    assert "leaves the reasoning out" in " ".join(pieces.notes)


DATED = "<|system|>Today is {{ strftime_now('%Y-%m-%d') }}.\n" + NAMED["zephyr"]
CLOCKLESS = (
    "<|system|>Today is {{ strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' }}.\n"
    + NAMED["zephyr"]
)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_the_date_stays_dynamic(conversation: str) -> None:
    text = go_of(DATED)
    assert date.today().isoformat() not in text
    assert go.render(text, CONVERSATIONS[conversation]) == jinja(DATED, CONVERSATIONS[conversation])


def test_a_date_in_a_form_that_ollama_does_not_have_is_never_frozen() -> None:
    pieces = derive(with_template(CLOCKLESS), "")
    assert pieces is not None
    assert pieces.render([Message("user", "Hi")]).startswith("<|system|>Today is 26 Jul 2024.\n")
    assert date.today().strftime("%d %b %Y") not in pieces.go()
    assert "engines without a clock" in pieces.notes[0]


@pytest.mark.parametrize("changed", ["strftime_now('%B %d, %Y')", "strftime_now('%Y-%m-%d')[:4]"])
def test_a_template_that_needs_another_clock_is_left_out(changed: str) -> None:
    assert derive(with_template(DATED.replace("strftime_now('%Y-%m-%d')", changed)), "") is None


def test_pieces_must_fit_longer_conversations() -> None:
    numbered = "{% for m in messages %}{{ '!' if loop.index > 3 }}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    assert derive(with_template(numbered), "") is None
    assert derive(with_template(numbered.replace("> 3", "> 9")), "") is not None


REAL = ("meta-llama-Llama-3.1-8B-Instruct", "mistralai-Mistral-Nemo-Instruct-2407", "Qwen-Qwen2.5-7B-Instruct")
LEFT_OUT = frozenset(
    (
        "CohereForAI-c4ai-command-r-plus-tool_use",  # these four fail without a list of tools
        "fireworks-ai-llama-3-firefunction-v2",
        "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
        "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
        "ibm-granite-granite-3.3-2B-Instruct",  # writes the name of the month
    )
)


def of_llama_cpp() -> list[Any]:
    tree = os.environ.get("QDPO_LLAMA_CPP")
    names = [path.stem for path in sorted((Path(tree) / "models" / "templates").glob("*.jinja"))] if tree else REAL
    return [name if name in REAL else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", of_llama_cpp())
def test_real_templates(name: str) -> None:
    """All templates of llama.cpp's folder: the same text as Jinja, or told what differs, or left out."""
    template = llama_cpp(f"templates/{name}.jinja").read_text()
    pieces = derive(with_template(template), "")
    assert (pieces is None) == (name in LEFT_OUT)
    if pieces is None:
        return
    assert not [word for word in stop_words(pieces, []) if "think" in word.lower()]
    clock = "engines without a clock" in " ".join(pieces.notes)
    padded = [{**m, "content": f" \n{m['content']}\n "} for m in [SYSTEM, *TALK]]
    reasoned = [USER, {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nFine."}, USER]
    talks = [*CONVERSATIONS.values(), [SYSTEM, *TALK, TALK[1], USER], padded, reasoned]
    for messages in talks:
        told = {"white space": padded, "the reasoning": reasoned}
        if any(messages == talk and part in " ".join(pieces.notes) for part, talk in told.items()):
            continue
        if pieces.system == "nowhere":
            messages = [message for message in messages if message["role"] != "system"]
        source = "{% set strftime_now = no_clock +%}" + template if clock else template
        assert go.render(pieces.go(), messages) == jinja(source, messages)


@pytest.mark.skipif(not go.has_go(), reason="needs Go (Debian's golang-go)")
def test_the_stand_in_renders_as_go_does() -> None:
    templates = [*NAMED.values(), LATE, DATED, CLOCKLESS, NAMED["chatml"].replace("['content']", "['content'] | trim")]
    jobs = [(go_of(template), messages) for template in templates for messages in (*CONVERSATIONS.values(), PADDED)]
    twice = [{"role": role, "content": text} for role in ("system", "user") for text in ("one ", " two")]
    jobs += [(go_of(template), twice) for template in templates]
    assert go.render_all(jobs) == [go.stand_in(template, messages) for template, messages in jobs]


def export(run: Path, **changes: Any) -> Path:
    return write_ollama(Request(load_run(run), run / "export" / "ollama", "original", **changes))


def test_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, families.config("mistral"))
    tokenizer = toys.byte_tokenizer()
    tokenizer.chat_template = NAMED["chatml"]
    tokenizer.save_pretrained(run / "adapter")
    out = export(run)
    text = (out / "Modelfile").read_text()
    assert text.startswith("FROM ./toy-Q4_K_M.gguf\n")
    assert (out / "toy-Q4_K_M.gguf").is_file()
    assert "PARAMETER repeat_penalty 1\n" in text
    assert "penalize_newline" not in text, "Ollama has given it up, and says so at every start"
    for stop in ("</s>", "<|im_start|>", "<|im_end|>"):
        assert f'PARAMETER stop "{stop}"' in text
    body = text.split('TEMPLATE """')[1].split('"""')[0]
    assert go.render(body, TALK) == jinja(NAMED["chatml"], TALK)
    assert f"ollama create toy -f {out / 'Modelfile'}" in capsys.readouterr().err


def test_without_a_usable_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, families.config("mistral"))
    (run / "adapter" / "chat_template.jinja").write_text("{{ messages[0]['content'] | upper }}")
    assert "TEMPLATE" not in (export(run, quants=("f16",)) / "Modelfile").read_text()
    assert "cannot be written in Ollama's syntax" in capsys.readouterr().err
    (run / "adapter" / "chat_template.jinja").unlink()
    assert 'TEMPLATE """{{ .Prompt }}"""' in (export(run, quants=("f16",)) / "Modelfile").read_text()


def test_one_file_only(tmp_path: Path) -> None:
    run = make_run(tmp_path, families.config("mistral"))
    with pytest.raises(UsageError, match="has one file"):
        export(run, quants=("f16", "q8_0"))


def test_stop_words() -> None:
    pieces = derive(with_template(NAMED["zephyr"]), "")
    assert stop_words(pieces, ["</s>"]) == ["</s>", "<|system|>", "<|user|>", "<|assistant|>"]
    assert stop_words(None, ["<eos>"]) == ["<eos>"]


def test_what_an_answer_may_contain_is_no_stop_word() -> None:
    """Marks of reasoning, parts of an answer behind its first marker, and tags that are no special tokens."""
    template = (
        "Tags are written like <tool_call>."
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
        "<|start|>assistant<|channel|>"
    )
    assert stop_words(derive(with_template(template), ""), []) == ["<|start|>", "<|end|>"]
    thinking = "{% for m in messages %}<turn>{{ m.content }}{% endfor %}<think>\n"
    pieces = derive(with_template(thinking), "")
    assert pieces is not None
    assert stop_words(pieces, ["</s>"], {"<turn>", "<think>"}) == ["</s>", "<turn>"]
    assert stop_words(pieces, ["</s>"]) == ["</s>"]
