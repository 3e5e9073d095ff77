"""A chat template in Ollama's Go syntax, derived from the model's own Jinja template.

Nothing is looked up by name: the Jinja template is rendered with marked messages, the text around the marks is cut out,
and the Go template puts the same text around its messages. So it says what the model was trained on, or is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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

    def go(self) -> str:
        """The Go template.

        Ollama joins neighbouring messages of one role, so that user and assistant take turns.
        """
        system = []
        if self.before_system is not None:
            system = [
                '{{- if eq .Role "system" }}' + _action(self.before_system) + "{{ .Content }}",
                f"{{{{- $before = {_string(self.after_system)} }}}}",
            ]
        lines = [
            f"{{{{- $before := {_string(self.before_user)} }}}}",
            "{{- range .Messages }}",
            *system,
            "{{- " + ("else if" if system else "if") + ' eq .Role "user" }}{{ $before }}{{ .Content }}',
            f"{{{{- $before = {_string(self.before_next_user)} }}}}",
            '{{- else if eq .Role "assistant" }}' + _action(self.before_assistant) + "{{ .Content }}",
            "{{- end }}",
            "{{- end }}" + _action(self.end),
        ]
        return "\n".join(lines)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _action(text: str) -> str:
    """Text as an action, so that neither braces nor trimmed spaces can change it."""
    return f"{{{{ {_string(text)} }}}}" if text else ""


def derive(tokenizer: PreTrainedTokenizerBase, strip: str) -> Pieces | None:
    """Take a tokenizer's chat template apart.

    Args:
        tokenizer: has the template and the special tokens that it names.
        strip: text that the runtime puts before the prompt itself (the BOS token), removed from the start.

    Returns:
        The pieces, or None when the template does not put the same text around messages whatever they say.
    """
    template = own_template(tokenizer)
    talk = [Message("user", USER), Message("assistant", ASSISTANT), Message("user", USER2)]

    def cut(messages: Sequence[Message]) -> list[str] | None:
        """The text before, between and after messages; None when the template refuses, loses or moves them."""
        try:
            text = template.prompt(tokenizer, messages).removeprefix(strip)
        except QdpoError:  # the template refuses, is faulty, or takes too long
            return None
        contents = [message.content for message in messages]
        match = re.fullmatch("(.*?)" + "(.*?)".join(map(re.escape, contents)) + "(.*)", text, re.DOTALL)
        if match is None or any(content in piece for content in contents for piece in match.groups()):
            return None
        return list(match.groups())

    short, long = cut(talk[:1]), cut(talk)
    if short is None or long is None or short[0] != long[0] or short[1] != long[3]:
        return None
    with_system = cut([Message("system", SYSTEM), *talk])
    if with_system is not None and with_system[2:] != long[1:]:
        return None
    before_system, after_system = with_system[:2] if with_system else (None, "")
    return Pieces(before_system, after_system, *long)


_MARKER = re.compile(r"<\|[^|<>\s]+\|>|</?[a-z][a-z_]*>|\[/?INST\]")


def stop_words(pieces: Pieces | None, ends: list[str]) -> list[str]:
    """Texts at which generation stops: the tokens that end a turn, and the markers that begin one."""
    found = list(ends)
    for piece in astuple(pieces) if pieces else ():
        found += _MARKER.findall(piece or "")
    return list(dict.fromkeys(found))
