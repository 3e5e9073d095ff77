"""A chat template in Ollama's Go syntax, derived from the model's own Jinja template.

Nothing is looked up by name: the Jinja template is rendered with marked messages, the text around the marks is cut out,
and the Go template puts the same text around its messages. So it says what the model was trained on, or is refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from qdpo.data.pairs import Message
from qdpo.data.template import own_template
from qdpo.errors import QdpoError

SYSTEM, USER, ASSISTANT, USER2 = "@@System@@", "@@User@@", "@@Assistant@@", "@@User2@@"


@dataclass(frozen=True)
class Pieces:
    """The text around the messages of a conversation that begins with a system message or a user's.

    Attributes:
        before_system: before the system message; None when the template has no system message.
        after_system: between the system message and the first user message.
        before_user: before the first user message, when there is no system message.
        before_assistant: between a user message and the assistant's answer.
        before_next_user: between an answer and the next user message.
        end: after the last user message: what makes the assistant speak.
    """

    before_system: str | None
    after_system: str
    before_user: str
    before_assistant: str
    before_next_user: str
    end: str

    def all(self) -> list[str]:
        """Every piece of text."""
        texts = [self.before_system or "", self.after_system, self.before_user, self.before_assistant]
        return [*texts, self.before_next_user, self.end]

    def go(self) -> str:
        """The Go template.

        Ollama joins neighbouring messages of one role, so that user and assistant take turns.
        """
        lines = [f"{{{{- $before := {json.dumps(self.before_user, ensure_ascii=False)} }}}}"]
        lines.append("{{- range .Messages }}")
        if self.before_system is not None:
            lines.append('{{- if eq .Role "system" }}' + _text(self.before_system) + "{{ .Content }}")
            lines.append(f"{{{{- $before = {json.dumps(self.after_system, ensure_ascii=False)} }}}}")
            lines.append('{{- else if eq .Role "user" }}{{ $before }}{{ .Content }}')
        else:
            lines.append('{{- if eq .Role "user" }}{{ $before }}{{ .Content }}')
        lines.append(f"{{{{- $before = {json.dumps(self.before_next_user, ensure_ascii=False)} }}}}")
        lines.append('{{- else if eq .Role "assistant" }}' + _text(self.before_assistant) + "{{ .Content }}")
        lines.append("{{- end }}")
        lines.append("{{- end }}" + _text(self.end))
        return "\n".join(lines)


def _text(text: str) -> str:
    """Text as an action, so that neither braces nor trimmed spaces can change it."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def derive(tokenizer: Any, strip: str) -> Pieces | None:
    """Take a chat template apart.

    Args:
        tokenizer: has the chat template.
        strip: text that the runtime puts before the prompt itself (the BOS token), removed from the start.

    Returns:
        The pieces, or None when the template does not put the same text around messages whatever they say.
    """
    u, a, u2 = Message("user", USER), Message("assistant", ASSISTANT), Message("user", USER2)
    short, long = _cut(tokenizer, [u], strip), _cut(tokenizer, [u, a, u2], strip)
    if short is None or long is None:
        return None
    with_system = _cut(tokenizer, [Message("system", SYSTEM), u, a, u2], strip)
    if short[0] != long[0] or short[1] != long[3]:
        return None
    if with_system is not None and with_system[2:] != long[1:]:
        return None
    before_system, after_system = with_system[:2] if with_system else (None, "")
    return Pieces(before_system, after_system, long[0], long[1], long[2], long[3])


def _cut(tokenizer: Any, messages: list[Message], strip: str) -> list[str] | None:
    """The text before, between and after the messages; None when rendering fails or messages are missing or moved."""
    try:
        text = own_template(tokenizer).prompt(tokenizer, messages)
    except QdpoError:  # the template refuses, is faulty, or takes too long
        return None
    text = text.removeprefix(strip)
    pattern = "(.*?)" + "(.*?)".join(re.escape(message.content) for message in messages) + "(.*)"
    match = re.fullmatch(pattern, text, re.DOTALL)
    if match is None or any(message.content in piece for message in messages for piece in match.groups()):
        return None
    return list(match.groups())


_MARKER = re.compile(r"<\|[^|<>\s]+\|>|</?[a-z][a-z_]*>|\[/?INST\]")


def stop_words(pieces: Pieces | None, ends: list[str]) -> list[str]:
    """Texts at which generation stops: the tokens that end a turn, and the markers that begin one."""
    found = list(ends)
    for piece in pieces.all() if pieces else []:
        found += _MARKER.findall(piece)
    return list(dict.fromkeys(found))
