"""From a conversation to text: the chat template, and what ends a turn in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qdpo.data.pairs import Message, Pair
from qdpo.data.pieces import BadRow
from qdpo.data.renderer import CHARACTERS, Refused, Renderer, renderer
from qdpo.errors import ConfigError, DataError
from qdpo.files import digest_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The handbook's and RECIPES' formats, and the two most common others, for tokenizers that bring no template or the
# wrong one.
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
    # Meta's Llama 3 Instruct
    "llama-3": (
        "{{ bos_token }}{% for message in messages %}"
        "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    # Mistral 7B Instruct v0.1 and v0.2; a system message is put before the first question
    "mistral": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{% continue %}{% endif %}"
        "{% if message['role'] == 'user' %}"
        "[INST] {% if loop.previtem is defined and loop.previtem['role'] == 'system' and loop.previtem['content'] %}"
        "{{ loop.previtem['content'] | trim }}\n\n{% endif %}{{ message['content'] | trim }} [/INST]"
        "{% else %} {{ message['content'] | trim }}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    ),
}
NAMES = ", ".join(NAMED)


@dataclass(frozen=True)
class Template:
    """How conversations become text.

    Attributes:
        source: the Jinja text; None renders plain text, one end-of-sequence token after the completion.
        origin: where it came from, for messages.
        end_of_turn: the id that ends the assistant's turn; empty when the template ends it with ordinary text.
        takes_system: whether it has a place for a system message.
    """

    source: str | None
    origin: str
    end_of_turn: frozenset[int]
    takes_system: bool = True

    @property
    def sha256(self) -> str:
        """Identifies the template in run.json."""
        return digest_of([self.source or "plain text"])

    def prompt(self, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
        """The text up to where the assistant begins to speak.

        Raises:
            DataError: the template refuses the conversation.
        """
        return self._texts(tokenizer, [messages])[0]

    def conversation(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[Message], completion: Sequence[Message]
    ) -> str:
        """The whole text, the completion and its end of turn included.

        Raises:
            DataError: the template refuses the conversation.
        """
        return self._texts(tokenizer, [prompt, completion])[1]

    def render(self, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[list[str] | BadRow]:
        """The texts of pairs: the prompt, prompt and chosen, prompt and rejected; or why there are none.

        Raises:
            DataError: the template itself is at fault.
        """
        jobs = [(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]
        results: list[list[str] | BadRow] = []
        for texts in self._render(tokenizer, jobs):
            refused = next((text for text in texts if isinstance(text, Refused)), None)
            if refused:
                results.append(BadRow(f"the chat template ({self.origin}) refuses the conversation: {refused}"))
            else:
                results.append([str(text) for text in texts])
        return results

    def _texts(self, tokenizer: PreTrainedTokenizerBase, job: Sequence[Sequence[Message]]) -> list[str]:
        (texts,) = self._render(tokenizer, [job])
        for text in texts:
            if isinstance(text, Refused):
                raise DataError(
                    f"the chat template ({self.origin}) cannot render this conversation: {text}",
                    f"choose another with data.template: {NAMES}, none, or a file",
                )
        return [str(text) for text in texts]

    def _render(
        self, tokenizer: PreTrainedTokenizerBase, jobs: Sequence[Sequence[Sequence[Message]]]
    ) -> list[list[str | Refused]]:
        if self.source is None:
            return [_plain(job, str(tokenizer.eos_token)) for job in jobs]
        return self._renderer(tokenizer).render(jobs)

    def _renderer(self, tokenizer: PreTrainedTokenizerBase) -> Renderer:
        assert self.source is not None
        special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
        return renderer(self.source, tuple(sorted(special.items())), self.origin)


def _plain(job: Sequence[Sequence[Message]], eos: str) -> list[str | Refused]:
    """Prompt and completions as plain text, which reads on."""
    prompt, *completions = job
    before = "\n\n".join(message.content for message in prompt if message.content)
    texts: list[str | Refused] = [before]
    for completion in completions:
        said = "\n\n".join(message.content for message in completion)
        # The completion is separated from the prompt by one space unless either brings it.
        gap = " " if before and not before[-1].isspace() and not said[:1].isspace() else ""
        texts.append(f"{before}{gap}{said}{eos}")
    return [
        text if len(text) <= CHARACTERS else Refused(f"its text is longer than {CHARACTERS:,} characters")
        for text in map(str, texts)
    ]


def load_template(wanted: str, tokenizer: PreTrainedTokenizerBase) -> Template:
    """The template that `data.template` asks for, tried out.

    Args:
        wanted: `auto` (the tokenizer's own), `none` (plain text), a name of `NAMED`, or a file.
        tokenizer: the base's tokenizer.

    Raises:
        ConfigError: no such template, or `auto` and the tokenizer has none.
        DataError: the template or the tokenizer is faulty, see `qdpo.data.probe`.
    """
    from qdpo.data.probe import probe, probe_tokenizer

    probe_tokenizer(tokenizer)
    if wanted == "none":
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "data.template: none needs a tokenizer with an end-of-sequence token", "set model.tokenizer to one"
            )
        return Template(None, "plain text", frozenset({int(tokenizer.eos_token_id)}))
    return probe(*_find(wanted, tokenizer), tokenizer)


def _find(wanted: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The Jinja source and its origin."""
    if wanted == "auto":
        own = tokenizer.chat_template
        if isinstance(own, dict):
            own = own.get("default")
        if not isinstance(own, str):
            raise ConfigError(
                "the tokenizer has no chat template",
                f"set data.template to one of {NAMES}, to a file, or to `none` for plain text",
            )
        return own, "the tokenizer's"
    if wanted in NAMED:
        return NAMED[wanted], f"named {wanted}"
    path = Path(wanted).expanduser()
    if not path.is_file():
        raise ConfigError(f"data.template: there is no template or file {wanted!r}", f"choose auto, none, {NAMES}")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.template: {path} cannot be read: {error}", "give a text file in UTF-8") from error
    return text, str(path)
