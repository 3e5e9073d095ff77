"""Prompts that a chat template was written around already, read back as the conversation that they are.

Many datasets hold the text of ChatML, Zephyr, Llama, Gemma, Alpaca or of Human and Assistant, as the code of one model
wrote it. Written into another template as it is, such a text would be one user's message that speaks of turns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from qdpo.data.messages import SPEAKERS
from qdpo.data.pairs import Message


@dataclass(frozen=True)
class Family:
    """A way to write turns as text.

    Attributes:
        name: for a message.
        opens: matches what stands before a turn; its group is who speaks, or the names of groups are roles.
        ends: matches what stands behind what was said, at its end.
        before: matches what may stand before the first turn, and is not said by anybody.
        preamble: whether any other text there is the system message.
        joins: whether two parts in a row are one message: an instruction and its input.
    """

    name: str
    opens: re.Pattern[str]
    ends: re.Pattern[str]
    before: re.Pattern[str] = re.compile(r"\s*")
    preamble: bool = False
    joins: bool = False


END = re.compile(
    r"\s*(?:<\|im_end\|>|<\|eot_id\|>|<\|end\|>|<\|end_of_text\|>|<\|endoftext\|>|<end_of_turn>|<eos>|</s>|<\|end_of_turn\|>"
    r"|<\|END_OF_TURN_TOKEN\|>|<｜end▁of▁sentence｜>)"
    r"(?:\s*(?:</s>|<eos>|<\|endoftext\|>))?\s*$"
)
"""What the templates write behind a message."""
BEGIN = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>|<\|startoftext\|>|<\|endoftext\|>|<BOS_TOKEN>|<｜begin▁of▁sentence｜>)?\s*"
)
NOTHING = re.compile(r"\s*$")
ALPACA = re.compile(
    r"\s*(?:Below is an instruction that describes a task(?:, paired with an input that provides further context)?\. "
    r"Write a response that appropriately completes the request\.)?\s*"
)

FAMILIES = (
    Family("ChatML", re.compile(r"<\|im_start\|> ?(system|user|assistant|human|gpt)\n"), END, BEGIN),
    Family(
        "Llama 3",
        re.compile(r"<\|start_header_id\|>(system|user|assistant)<\|end_header_id\|>\n*"),
        END,
        BEGIN,
    ),
    Family("Gemma", re.compile(r"<start_of_turn>(user|model|system)\n"), END, BEGIN),
    Family("Zephyr", re.compile(r"<\|(system|user|assistant|prompter)\|>\n?"), END, BEGIN),
    Family("NeMo", re.compile(r"<extra_id_[01]>(System|User|Assistant)\n"), re.compile(r"\s*(?:<extra_id_1>)?\s*$")),
    Family(
        "Llama 2 and Mistral",
        re.compile(r"(?:<s>)?\s*(?P<user>\[INST\]) ?|(?P<assistant>\[/INST\]) ?"),
        END,
        BEGIN,
    ),
    Family(
        "Command R",
        re.compile(
            r"<\|START_OF_TURN_TOKEN\|>(?:(?P<system><\|SYSTEM_TOKEN\|>)|(?P<user><\|USER_TOKEN\|>)"
            r"|(?P<assistant><\|CHATBOT_TOKEN\|>))"
        ),
        END,
        BEGIN,
    ),
    Family("DeepSeek", re.compile(r"<｜(User|Assistant)｜>"), END, BEGIN, preamble=True),
    Family("OpenChat", re.compile(r"(?:GPT4 Correct|Code) (User|Assistant): ?"), END, BEGIN),
    Family(
        "`### Human:`",
        re.compile(r"(?:^|\n)\s*### ?(Human|User|Assistant|System): ?"),
        NOTHING,
        preamble=True,
    ),
    Family(
        "Alpaca",
        re.compile(r"(?:^|\n)\s*### ?(?:(?P<user>Instruction|Input)|(?P<assistant>Response)): ?\n?"),
        END,
        ALPACA,
        preamble=True,
        joins=True,
    ),
    Family("`Human:` and `Assistant:`", re.compile(r"(?:^|\n)\s*(Human|User|Assistant): ?"), NOTHING),
    # DeepSpeed-Chat's own data
    Family("`Human:` and `Assistant:` in a line", re.compile(r"(?:^|\s)(Human|User|Assistant): ?"), NOTHING),
    Family("Vicuna", re.compile(r"(?:^|\s|</s>)(USER|ASSISTANT): ?"), END, preamble=True),
)
SPEAKS = (
    r"(?:<\|im_start\|>\s*assistant|<\|start_header_id\|>assistant<\|end_header_id\|>|<start_of_turn>model|<\|assistant\|>"
    r"|<extra_id_1>Assistant|\[/INST\]|###\s?(?:Response|Assistant):|Assistant:|ASSISTANT:|<｜Assistant｜>"
    r"|<\|START_OF_TURN_TOKEN\|><\|CHATBOT_TOKEN\|>|GPT4 Correct Assistant:)\s*"
)
ASKS = re.compile(SPEAKS + "$")
"""How a prompt ends that a template was written around."""
ANSWERS = re.compile(r"\s*" + SPEAKS)
"""How an answer begins that a template was written around."""
SYSTEM = re.compile(r"<<SYS>>\n?(.*?)\n?<</SYS>>\s*", re.DOTALL)


@dataclass(frozen=True)
class Templated:
    """A text, read back.

    Attributes:
        messages: the conversation up to where the assistant begins to speak.
        begun: what the assistant has said of its answer already; empty nearly always.
    """

    messages: list[Message]
    begun: str


def read_back(text: str, family: Family) -> Templated | None:
    """The conversation that a text is; None where it is not one of this family from its beginning to its end.

    Args:
        text: of a prompt; ends where the assistant begins to speak, or inside of its answer.
        family: how turns are written.
    """
    marks = list(family.opens.finditer(text))
    if len(marks) < 2:
        return None
    messages: list[Message] = []
    before = text[: marks[0].start()]
    rest = before[family.before.match(before).end() :] if family.before.match(before) else before  # type: ignore[union-attr]
    if rest.strip():
        if not family.preamble:
            return None
        messages.append(Message("system", rest.strip()))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=True):
        role = _role(mark)
        said = text[mark.end() : end]
        if found := SYSTEM.match(said):
            messages.append(Message("system", found[1].strip()))
            said = said[found.end() :]
        said = family.ends.sub("", said)
        if end < len(text):
            said = said.strip()
        if family.joins and messages and messages[-1].role == role:
            said = f"{messages.pop().content}\n{said}".strip()
        messages.append(Message(role, said))
    messages = [message for message in messages if message.content or message.role != "system"]
    if messages[-1].role != "assistant" or not all(message.content for message in messages[:-1]):
        return None
    begun = messages.pop().content
    # a template may write a space or a line behind the assistant's mark
    return Templated(messages, begun if begun.strip() else "")


def family_of(texts: Sequence[str]) -> Family | None:
    """The family in which nine of ten texts or more are written, or none."""
    for family in FAMILIES:
        fitting = sum(read_back(text, family) is not None for text in texts)
        if fitting and fitting >= 0.9 * len(texts):
            return family
    return None


def family_in(text: str) -> Family | None:
    """The family in which one text is written up to where the assistant begins to speak, or none."""
    return family_of([text]) if ASKS.search(text[-80:]) else None


def answer_begins(text: str) -> int | None:
    """Where the assistant begins to speak for the last time in a text of a family; None in any other text."""
    for family in FAMILIES:
        marks = [mark for mark in family.opens.finditer(text) if _role(mark) == "assistant"]
        if marks and read_back(text[: marks[-1].end()], family):
            return marks[-1].end()
    return None


def with_mark(asked: str, sides: list[str]) -> tuple[str, list[str]]:
    """The prompt with the assistant's mark that both answers begin with, and the answers without it."""
    found = [ANSWERS.match(side) for side in sides]
    marks = {mark[0] if mark else "" for mark in found}
    if len(marks) > 1 or not all(marks) or ASKS.search(asked[-80:]):
        return asked, sides
    mark = marks.pop()
    asked = asked if asked[-1:].isspace() else f"{asked}\n"
    return asked + mark, [side[len(mark) :] for side in sides]


def _role(mark: re.Match[str]) -> str:
    return mark.lastgroup or SPEAKERS[mark[1].lower()]


def without_end(text: str, family: Family) -> str:
    """An answer without the mark of its end."""
    return family.ends.sub("", text)
