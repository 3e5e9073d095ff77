"""The Ollama folder: its Go template gives the prompts that the model was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from export import families, go, toys
from export.toys_gguf import make_run
from materials import MATERIAL, llama_cpp
from transformers import PreTrainedTokenizerFast

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
    if pieces.before_system is None:
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
    assert "PARAMETER repeat_penalty 1\nPARAMETER penalize_newline false\n" in text
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
