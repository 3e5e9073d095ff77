"""A few fixed prompts, answered by base and policy at every evaluation: what the numbers look like as text.

`samples.jsonl` has one JSON object per prompt and evaluation:

    step            optimizer steps done
    sample          number of the prompt, from 0
    prompt          its turns, each after the word for who speaks
    row             row of the held-out pair that it is from; null for a prompt of samples.prompts
    chosen          what the dataset prefers as an answer; null for a prompt of samples.prompts
    base, policy    the answers, greedy, at most samples.max_new_tokens tokens
    base_ended, policy_ended    whether the answer came to its end within them

Decoding is greedy and leaves every random number generator alone: a run trains the same with samples and without.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import nn

from qdpo import console
from qdpo.config.schema import RunConfig
from qdpo.data.pairs import Message, TokenPair
from qdpo.data.turns import spoken
from qdpo.engine.decoding import greedy
from qdpo.engine.engine import evaluating
from qdpo.errors import first_line
from qdpo.files import append
from qdpo.hardware import is_out_of_memory
from qdpo.progress import Progress
from qdpo.run.folder import SAMPLES
from qdpo.run.metrics import keep_until

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from qdpo.data.prepare import Prepared
    from qdpo.data.template import Template
    from qdpo.training.stages.state import RunState

SHOWN = 240
"""Characters of a text that the terminal shows; the file has all of it."""


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer.

    Attributes:
        ids: its tokens.
        row: row of the held-out pair that it is from, None for the user's own.
        chosen: ids of the dataset's preferred answer, None for the user's own.
    """

    ids: list[int]
    row: int | None = None
    chosen: list[int] | None = None


def choose_prompts(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, template: Template, heldout: Sequence[TokenPair]
) -> list[Prompt]:
    """The prompts of samples.prompts, else the first different ones of the held-out pairs.

    A prompt that holds no text (pairs of bare sentences have only a BOS) asks nothing and is passed over.

    Raises:
        DataError: the template refuses a prompt of samples.prompts.
    """
    from qdpo.data.prepare import system_for
    from qdpo.data.tokenise import Tokeniser

    section, limits = config.samples, config.data
    if section.prompts:
        tokeniser = Tokeniser(tokenizer, template, limits.max_length, limits.max_prompt_length)
        system = system_for(limits, template)
        first = [] if system is None else [Message("system", system)]
        texts = [template.prompt(tokenizer, [*first, Message("user", text)]) for text in section.prompts]
        return [Prompt(tokeniser.encode(text)) for text in texts]
    chosen: dict[tuple[int, ...], Prompt] = {}
    for pair in heldout:
        if len(chosen) == section.count:
            break
        if str(tokenizer.decode(pair.prompt, skip_special_tokens=True)).strip():
            chosen.setdefault(tuple(pair.prompt), Prompt(pair.prompt, pair.row, pair.chosen))
    return list(chosen.values())


def samples_of(
    run: RunState,
    tokenizer: PreTrainedTokenizerBase,
    data: Prepared,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Samples:
    """The samples of a run."""
    return Samples(
        run.folder / SAMPLES,
        choose_prompts(run.config, tokenizer, data.template, data.heldout),
        tokenizer,
        data.template.end_of_turn or frozenset({int(tokenizer.eos_token_id)}),
        run.config.samples.max_new_tokens,
        autocast,
    )


class Samples:
    """Answers the prompts at every evaluation, appends to samples.jsonl, and shows base and policy side by side.

    Args:
        path: the file.
        prompts: what to answer.
        tokenizer: decodes.
        ends: ids that end an answer.
        new_tokens: tokens of an answer at the most.
        autocast: makes the context of a forward pass.
    """

    def __init__(
        self,
        path: Path,
        prompts: Sequence[Prompt],
        tokenizer: PreTrainedTokenizerBase,
        ends: frozenset[int],
        new_tokens: int,
        autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self.path, self.prompts, self.tokenizer = path, list(prompts), tokenizer
        self.ends, self.new_tokens, self.autocast = ends, new_tokens, autocast
        self.at_once = len(self.prompts)
        self.base: list[tuple[str, bool]] = []
        self.shown: list[str] = []

    def begin(self, step: int) -> None:
        """Drop the lines of steps that a resumed run will do again."""
        keep_until(self.path, step)

    def show(self, policy: PeftModel, step: int) -> None:
        """Answer, write, show; a model that cannot answer is trained on without samples."""
        if not self.prompts:
            return
        try:
            rows = self.answers(policy, step)
        except (RuntimeError, MemoryError, TypeError, ValueError, AttributeError, IndexError) as error:
            console.warn(f"no samples from here on: the model cannot continue a prompt ({first_line(error, 200)})")
            self.prompts = []
            return
        append(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        self._show(step, rows)

    def answers(self, policy: PeftModel, step: int) -> list[dict[str, Any]]:
        """The lines of one evaluation."""
        model: Any = policy.get_base_model()
        with torch.no_grad(), evaluating(policy), self.autocast():
            if not self.base:
                with policy.disable_adapter():
                    self.base = self._answers(model)
            made = self._answers(model)
        return [
            {
                "step": step,
                "sample": number,
                "prompt": spoken(self.tokenizer, prompt.ids),
                "row": prompt.row,
                "chosen": self._text(prompt.chosen) if prompt.chosen is not None else None,
                "base": base,
                "policy": answer,
                "base_ended": base_ended,
                "policy_ended": ended,
            }
            for number, (prompt, (base, base_ended), (answer, ended)) in enumerate(
                zip(self.prompts, self.base, made, strict=True)
            )
        ]

    def _answers(self, model: nn.Module) -> list[tuple[str, bool]]:
        """The answers to all prompts: together, or to fewer at a time when memory runs out."""
        while True:
            made: list[tuple[list[int], bool]] = []
            most = len(self.prompts) * self.new_tokens
            try:
                with Progress("answering the samples' prompts", most, unit="tokens") as progress:
                    for first in range(0, len(self.prompts), self.at_once):
                        prompts = [prompt.ids for prompt in self.prompts[first : first + self.at_once]]
                        made += greedy(model, prompts, self.ends, self.new_tokens, progress.advance)
                return [(self._text(ids), ended) for ids, ended in made]
            except Exception as error:
                if not is_out_of_memory(error) or self.at_once == 1:
                    raise
            # only now is what the failed passes held free: the exception held it
            clear_device_cache(garbage_collection=True)
            self.at_once = -(-self.at_once // 2)
            console.warn(f"out of memory in the samples: {self.at_once} prompts at a time from here on")

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _show(self, step: int, rows: list[dict[str, Any]]) -> None:
        from rich.table import Table

        answers = [row["policy"] for row in rows]
        if answers == self.shown:
            console.say(f"samples at step {step}: the same answers as before")
            return
        self.shown = answers
        table = Table(
            title=f"samples at step {step}", title_justify="left", box=None, pad_edge=False, show_header=False
        )
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for row in rows:
            same = row["policy"] == row["base"]
            table.add_row("prompt", _lines(row["prompt"]))
            table.add_row("base", _lines(row["base"]))
            table.add_row("policy", "the same" if same else _lines(row["policy"]), end_section=True)
        console.talk().print(table)


def _lines(text: str) -> Any:
    """A text for the terminal: its lines, nothing that a terminal would obey; of a long one the end."""
    from rich.text import Text

    text = "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())
    text = text if len(text) <= SHOWN else "..." + text[3 - SHOWN :]
    return Text("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text))
