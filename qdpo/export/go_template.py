"""A chat template in Ollama's Go syntax, derived from the model's own Jinja template.

Nothing is looked up by name: the Jinja template is rendered with marked messages, the text around the marks is cut out,
and the Go template puts the same text around its messages. What was cut out is then put around other conversations and
compared with what the Jinja template makes of them. So it says what the model was trained on, or is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

from qdpo.data.pairs import Message
from qdpo.data.template import Template, own_template
from qdpo.errors import QdpoError

SYSTEM, USER, ASSISTANT, USER2 = "@@System@@", "@@User@@", "@@Assistant@@", "@@User2@@"
TODAY = "@@Today@@"
"""Stands for the date as year-month-day, the one form that Ollama's `currentDate` writes."""

SystemPlace = Literal["first", "last user", "nowhere", "elsewhere"]


@dataclass(frozen=True)
class Pieces:
    """The text around the messages of a conversation that begins with a system message or a user's.

    Attributes:
        system: where a system message goes: before the first message, into the last user's message, nowhere (the
            template has no place for one), or elsewhere (it has one that cannot be written in Go, so it is left out).
        before_system: before the system message; within the last user's message, what comes before it there.
        after_system: between the system message and the user's message after it.
        before_user: before the first user message, when there is no system message.
        before_assistant: between a user message and the assistant's answer.
        before_next_user: between an answer and the next user message.
        end: after the last user message: what makes the assistant speak.
        trimmed: roles whose messages lose the white space at both ends.
        notes: what Ollama does otherwise than the template, for the user.
    """

    system: SystemPlace
    before_system: str
    after_system: str
    before_user: str
    before_assistant: str
    before_next_user: str
    end: str
    trimmed: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def texts(self) -> list[str]:
        """All the texts, in the order of a conversation."""
        of_system = [self.before_system, self.after_system] if self.system in ("first", "last user") else []
        return [*of_system, self.before_user, self.before_assistant, self.before_next_user, self.end]

    def render(self, messages: Sequence[Message]) -> str:
        """What the Go template makes of a conversation in which roles take turns."""
        parts, before = [], self.before_user
        for number, message in enumerate(messages):
            content = message.content.strip() if message.role in self.trimmed else message.content
            if message.role == "user":
                parts += [before]
                if self.system == "last user" and number + 1 == len(messages) and messages[0].role == "system":
                    said = messages[0].content
                    parts += [self.before_system, said.strip() if "system" in self.trimmed else said, self.after_system]
                parts += [content]
                before = self.before_next_user
            elif message.role == "assistant":
                parts += [self.before_assistant, content]
            elif self.system == "first":
                parts += [self.before_system, content]
                before = self.after_system
        return "".join([*parts, self.end])

    def go(self) -> str:
        """The Go template.

        Ollama joins neighbouring messages of one role, so that user and assistant take turns.
        """
        lines = [
            *([TRIM] if self.trimmed else []),
            f"{{{{- $before := {_string(self.before_user)} }}}}",
            "{{- range $i, $_ := .Messages }}",
        ]
        if self.system == "first":
            lines += [
                '{{- if eq .Role "system" }}' + _action(self.before_system) + self._said("system", ".Content"),
                f"{{{{- $before = {_string(self.after_system)} }}}}",
            ]
        within = ""
        if self.system == "last user":
            within = _action(self.before_system) + self._said("system", "$.System") + _action(self.after_system)
            within = "{{ if and $.System (eq (len (slice $.Messages $i)) 1) }}" + within + "{{ end }}"
        branch = "{{- else if" if self.system == "first" else "{{- if"
        lines += [
            f'{branch} eq .Role "user" }}}}{{{{ $before }}}}' + within + self._said("user", ".Content"),
            f"{{{{- $before = {_string(self.before_next_user)} }}}}",
            '{{- else if eq .Role "assistant" }}'
            + _action(self.before_assistant)
            + self._said("assistant", ".Content"),
            "{{- end }}",
            "{{- end }}" + _action(self.end),
        ]
        return "\n".join(lines)

    def _said(self, role: str, where: str) -> str:
        return f'{{{{ template "trim" {where} }}}}' if role in self.trimmed else f"{{{{ {where} }}}}"


# Go's templates have no function for it; this one calls itself with one character less. `len (slice . 1)` is the
# length less one: there is no subtraction either.
TRIM = """\
{{- define "trim" }}{{ if . }}
{{- $last := len (slice . 1) }}
{{- if eq (slice . 0 1) " " "\\n" "\\t" "\\r" "\\v" "\\f" }}{{ template "trim" (slice . 1) }}
{{- else if eq (slice . $last) " " "\\n" "\\t" "\\r" "\\v" "\\f" }}{{ template "trim" (slice . 0 $last) }}
{{- else }}{{ . }}{{ end }}{{ end }}{{ end }}"""


def _string(text: str) -> str:
    """A text as a Go expression: a string, or what joins strings and the date."""
    if TODAY not in text:
        return json.dumps(text, ensure_ascii=False)
    parts = [json.dumps(part, ensure_ascii=False) for part in text.split(TODAY)]
    return f"printf {json.dumps('%s' * (2 * len(parts) - 1))} {' currentDate '.join(parts)}"


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
    source = template.source or ""
    if "strftime_now" not in source:
        return _Cutter(tokenizer, template, strip).pieces()
    # The date of today must not end up in the Modelfile: Ollama's own clock writes it, or nobody does.
    clock = f'{{% macro strftime_now(form) %}}{{% if form == "%Y-%m-%d" %}}{TODAY}{{% endif %}}{{% endmacro +%}}'
    dated = _Cutter(tokenizer, replace(template, source=clock + source), strip).pieces()
    if dated is not None and any(TODAY in text for text in dated.texts()):
        real = _Cutter(tokenizer, template, strip)
        if real.agrees(lambda messages: dated.render(messages).replace(TODAY, date.today().isoformat()), dated.system):
            return dated
    without = replace(template, source="{% set strftime_now = no_clock +%}" + source)
    pieces = _Cutter(tokenizer, without, strip).pieces()
    if pieces is None:
        return None
    told = "the chat template writes the date of the day in a form that Ollama cannot: the Modelfile has the text that "
    return replace(pieces, notes=(*pieces.notes, told + "the template keeps for engines without a clock"))


@dataclass(frozen=True)
class _Cutter:
    """Cuts one chat template into pieces."""

    tokenizer: PreTrainedTokenizerBase
    template: Template
    strip: str

    def text(self, messages: Sequence[Message]) -> str | None:
        """A conversation as the template writes it; None when it refuses, is faulty, or takes too long."""
        try:
            return self.template.prompt(self.tokenizer, messages).removeprefix(self.strip)
        except QdpoError:
            return None

    def cut(self, messages: Sequence[Message], order: Sequence[str] | None = None) -> list[str] | None:
        """The text before, between and after messages; None when the template refuses, loses or moves them."""
        contents = list(order or [message.content for message in messages])
        match = re.fullmatch(
            "(.*?)" + "(.*?)".join(map(re.escape, contents)) + "(.*)", self.text(messages) or "", re.DOTALL
        )
        if match is None or any(content in piece for content in contents for piece in match.groups()):
            return None
        return list(match.groups())

    def pieces(self) -> Pieces | None:
        """The pieces, tried out on other conversations."""
        talk = [Message("user", USER), Message("assistant", ASSISTANT), Message("user", USER2)]
        short, long = self.cut(talk[:1]), self.cut(talk)
        if short is None or long is None or short[0] != long[0] or short[1] != long[3]:
            return None
        before, before_assistant, before_next, end = long
        plain = Pieces("nowhere", "", "", before, before_assistant, before_next, end)
        if not self.agrees(plain.render, "nowhere"):
            return None
        placed = next((p for p in self._with_system(plain, talk) if self.agrees(p.render, p.system)), None)
        return self._with_white_space(placed or self._without_system(plain))

    def _with_system(self, plain: Pieces, talk: Sequence[Message]) -> list[Pieces]:
        """The places where a system message may be."""
        system, found = Message("system", SYSTEM), []
        if (cut := self.cut([system, *talk])) and cut[2:] == plain.texts()[1:]:
            found.append(replace(plain, system="first", before_system=cut[0], after_system=cut[1]))
        if cut := self.cut([system, *talk], [USER, ASSISTANT, SYSTEM, USER2]):
            before = cut[2].removeprefix(plain.before_next_user)
            found.append(replace(plain, system="last user", before_system=before, after_system=cut[3]))
        return found

    def _without_system(self, plain: Pieces) -> Pieces:
        text = self.text([Message("system", SYSTEM), Message("user", USER)])
        if text is None or SYSTEM not in text:
            return plain
        told = "the chat template has a place for a system message that cannot be written in Ollama's syntax: Ollama's "
        return replace(plain, system="elsewhere", notes=(told + "SYSTEM is left out of prompts",))

    def _with_white_space(self, pieces: Pieces) -> Pieces:
        """Which messages the template trims, and what else it does to the ends of messages."""
        odd = []
        for role in ("system", "user", "assistant"):
            if role == "system" and pieces.system not in ("first", "last user"):
                continue
            results = {self._ends(pieces, role, pad) for pad in (" ", "\n", "\t \n")}
            if results == {"trimmed"}:
                pieces = replace(pieces, trimmed=pieces.trimmed | {role})
            elif results != {"kept"}:
                odd.append(role)
        if odd:
            told = f"the chat template changes white space around messages ({', '.join(odd)}) in a way that Ollama "
            pieces = replace(pieces, notes=(*pieces.notes, told + "cannot: there it stays as it is written"))
        reasoned = Message("assistant", f"<think>\n{SYSTEM}\n</think>\n\n{ASSISTANT}")
        talk = [Message("user", USER), reasoned, Message("user", USER2)]
        if self.text(talk) not in (None, pieces.render(talk)):
            told = "the chat template leaves the reasoning out of earlier answers, or moves it; Ollama does that only "
            told += "where it has taken the reasoning out of the answer itself"
            pieces = replace(pieces, notes=(*pieces.notes, told))
        return pieces

    def _ends(self, pieces: Pieces, role: str, pad: str) -> str:
        """What the template does to white space at both ends of messages of a role."""
        first = [Message("system", SYSTEM)] if role == "system" else []
        talk = [*first, Message("user", USER), Message("assistant", ASSISTANT), Message("user", USER2)]
        talk = [Message(m.role, pad + m.content + pad) if m.role == role else m for m in talk]
        text = self.text(talk)
        kept, trimmed = pieces, replace(pieces, trimmed=pieces.trimmed | {role})
        return "kept" if text == kept.render(talk) else "trimmed" if text == trimmed.render(talk) else "other"

    def agrees(self, render: Callable[[Sequence[Message]], str], system: SystemPlace) -> bool:
        """Whether conversations come out as the template writes them, with and without a system message."""
        asked, said = Message("user", "What is 2 + 2?"), Message("assistant", "It is 4,\nnot {{ 5 }}.")
        talks = [[asked], [asked, said, asked], [asked, said, Message("user", "And 3?"), said, asked]]
        if system in ("first", "last user"):
            talks += [[Message("system", 'Be "brief".'), *talk] for talk in talks]
        return all(self.text(talk) == render(talk) for talk in talks)


_MARKER = re.compile(r"<[|｜][^|｜<>\s]+[|｜]>|\[/?INST\]|</?[a-z][a-z_]*>")


def stop_words(pieces: Pieces | None, ends: Sequence[str], special: Collection[str] = ()) -> list[str]:
    """Texts at which generation stops: the tokens that end a turn, and the markers that begin one.

    Of each text between messages it is the first marker: later ones may begin a part of an answer (a channel, or the
    reasoning). What marks reasoning is never one, and tags as HTML has them only where they are special tokens.

    Args:
        pieces: the text between messages.
        ends: tokens that end a turn.
        special: the special tokens of the vocabulary.
    """
    found = list(ends)
    for text in pieces.texts() if pieces else ():
        markers = [m for m in _MARKER.findall(text) if m not in ends and (m in special or m[0] == "[" or m[1] in "|｜")]
        found += [marker for marker in markers[:1] if not re.search("think|reason", marker, re.IGNORECASE)]
    return list(dict.fromkeys(found))
