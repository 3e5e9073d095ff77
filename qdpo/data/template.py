"""From a conversation to text: the chat template, and what ends a turn in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdpo.data.pairs import Message
from qdpo.errors import ConfigError, DataError
from qdpo.files import digest_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The handbook's and RECIPES' formats, for tokenizers that bring no template or the wrong one.
NAMED = {
    "zephyr": (
        "{% for message in messages %}"
        "<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "gemma-chatml": (
        "{{ bos_token }}{% for message in messages %}"
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% if message['role'] == 'assistant' and loop.last %}{{ eos_token }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
}


@dataclass(frozen=True)
class Template:
    """How conversations become text.

    Attributes:
        source: the Jinja text; None renders plain text, one end-of-sequence token after the completion.
        origin: where it came from, for messages.
        end_of_turn: ids, any of which ends the assistant's turn; empty when the template has no such token.
    """

    source: str | None
    origin: str
    end_of_turn: frozenset[int]

    @property
    def sha256(self) -> str:
        """Identifies the template in run.json."""
        return digest_of([self.source or "plain text"])

    def prompt(self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
        """The text up to where the assistant begins to speak."""
        if self.source is None:
            return "\n\n".join(message.content for message in messages)
        return self._render(tokenizer, messages, add_generation_prompt=True)

    def conversation(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], completion: Sequence[Message]
    ) -> str:
        """The whole text, the completion and its end of turn included."""
        if self.source is not None:
            return self._render(tokenizer, [*prompt, *completion], add_generation_prompt=False)
        before = self.prompt(tokenizer, prompt)
        said = "\n\n".join(message.content for message in completion)
        # Plain text reads on: the completion is separated from the prompt by one space unless either brings it.
        gap = " " if before and not before[-1].isspace() and not said[:1].isspace() else ""
        return f"{before}{gap}{said}{tokenizer.eos_token}"

    def _render(
        self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool
    ) -> str:
        import jinja2

        conversation = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: Any = tokenizer.apply_chat_template(
                conversation,
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"the chat template ({self.origin}) cannot render this conversation: {error}",
                "choose another with data.template: zephyr, chatml, gemma-chatml, none, or a file",
            ) from error
        return str(text)


def load_template(wanted: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template that `data.template` asks for.

    Args:
        wanted: `auto` (the tokenizer's own), `none` (plain text), a name of `NAMED`, or a file.
        tokenizer: the base's tokenizer.

    Raises:
        ConfigError: no such template, or `auto` and the tokenizer has none.
    """
    if wanted == "none":
        if tokenizer.eos_token_id is None:
            raise ConfigError("data.template: none needs a tokenizer with an end-of-sequence token")
        return Template(None, "plain text", frozenset({int(tokenizer.eos_token_id)}))
    if wanted == "auto":
        if not isinstance(tokenizer.chat_template, str):
            raise ConfigError(
                "the tokenizer has no chat template",
                f"set data.template to one of {', '.join(NAMED)}, to a file, or to `none` for plain text",
            )
        return _probed(tokenizer.chat_template, "the tokenizer's", tokenizer)
    if wanted in NAMED:
        return _probed(NAMED[wanted], f"named {wanted}", tokenizer)
    path = Path(wanted).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"data.template: there is no template or file {wanted!r}", f"choose auto, none, {', '.join(NAMED)}"
        )
    return _probed(path.read_text("utf-8"), str(path), tokenizer)


def _probed(source: str, origin: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Find what ends a turn: the special tokens that follow any answer, whatever it says."""
    template = Template(source, origin, frozenset())
    question = [Message("user", "a")]
    prompt = template.prompt(tokenizer, question)
    ends = []
    for said in ("b", "c"):
        text = template.conversation(tokenizer, question, [Message("assistant", said)])
        tail = text[len(prompt) :] if text.startswith(prompt) else text[text.rindex(said) :]
        ends.append(tokenizer.encode(tail, add_special_tokens=False))
    special = {int(i) for i in tokenizer.all_special_ids}
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return Template(source, origin, frozenset(set(ends[0]) & set(ends[1]) & special))
