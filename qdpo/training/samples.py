"""Fixed prompts, answered by base and policy at every evaluation: what the numbers look like as text, and its measures.

`samples.jsonl` has one JSON object per prompt and evaluation:

    step            optimizer steps done
    sample          number of the prompt, from 0
    prompt          its turns, each after the word for who speaks
    row             row of the held-out pair that it is from; null for a prompt of samples.prompts
    chosen, rejected    what the dataset prefers as an answer, and to what; null for a prompt of samples.prompts
    base, policy    the answers, greedy, at most samples.max_new_tokens tokens

and of each answer, with `base_` or `policy_` before it:

    ended           whether it came to its end within them
    loops           whether it did not, and runs in circles
    nats            nats per token that it costs the base, also `chosen_nats`; null of an empty one
    known           right, wrong or other by samples.answer_key; null where the prompt is not in it

Decoding is greedy and leaves every random number generator alone: a run trains the same with samples and without.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import nn

from qdpo import console
from qdpo.config.schema import RunConfig, SamplesSection
from qdpo.data.pairs import Message, TokenPair
from qdpo.data.turns import spoken
from qdpo.engine.decoding import greedy
from qdpo.engine.engine import evaluating
from qdpo.engine.sizes import rows_at_once
from qdpo.errors import DataError, first_line
from qdpo.evaluation.written import is_loop, written_of
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
    from qdpo.engine.engine import Engine
    from qdpo.training.stages.state import RunState

SHOWN = 240
"""Characters of a text that the terminal shows; the file has all of it."""


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer.

    Attributes:
        ids: its tokens.
        row: row of the held-out pair that it is from, None for the user's own.
        chosen, rejected: ids of the dataset's answers, None for the user's own.
        key: answers that are known to be right or wrong, empty where none are.
    """

    ids: list[int]
    row: int | None = None
    chosen: list[int] | None = None
    rejected: list[int] | None = None
    key: Mapping[str, str] = field(default_factory=dict)


def choose_prompts(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, template: Template, heldout: Sequence[TokenPair]
) -> list[Prompt]:
    """The prompts of samples.prompts, else the first different ones of the held-out pairs.

    A prompt that holds no text (pairs of bare sentences have only a BOS) asks nothing and is passed over.

    Raises:
        DataError: the template refuses a prompt of samples.prompts or of the answer key, one spells out special tokens,
            or the key is faulty.
        InputMissingError: there is no such key.
    """
    from qdpo.data.prepare import system_for
    from qdpo.data.tokenise import Tokeniser

    section, limits = config.samples, config.data
    tokeniser = Tokeniser(tokenizer, template, limits.max_length, limits.max_prompt_length, limits.special_text)
    system = system_for(limits, template)
    first = [] if system is None else [Message("system", system)]

    def encoded(text: str) -> list[int]:
        return tokeniser.prompt([*first, Message("user", text)])

    if section.prompts:
        return [Prompt(encoded(text)) for text in section.prompts]
    keys = {}
    if section.answer_key is not None and section.count:
        keys = {tuple(encoded(prompt)): key for prompt, key in read_answer_key(section.answer_key).items()}
    chosen: dict[tuple[int, ...], Prompt] = {}
    for pair in heldout:
        if len(chosen) == section.count:
            break
        if str(tokenizer.decode(pair.prompt, skip_special_tokens=True)).strip():
            ids = tuple(pair.prompt)
            chosen.setdefault(ids, Prompt(pair.prompt, pair.row, pair.chosen, pair.rejected, keys.get(ids, {})))
    return list(chosen.values())


def read_answer_key(name: str) -> dict[str, dict[str, str]]:
    """Of each prompt of a key its answers, white space made one space, and whether they are `right` or `wrong`.

    Raises:
        DataError: a row is not as it should be.
        InputMissingError: there is no such file.
    """
    from qdpo.data.files import kinds, readers
    from qdpo.model.source import ASSETS, EMBEDDED

    path = ASSETS / "pairs" / "answer_key.jsonl" if name == EMBEDDED else Path(name).expanduser()
    kinds.check(path)
    found: dict[str, dict[str, str]] = {}
    for number, row in enumerate(readers.read(path), start=1):
        fields = row if isinstance(row, dict) else {}
        lists = [fields.get(kind) for kind in ("right", "wrong")]
        texts = all(isinstance(answers, list) and all(isinstance(a, str) for a in answers) for answers in lists)
        if not isinstance(fields.get("prompt"), str) or not texts:
            raise DataError(
                f"line {number} of the answer key {path} is not a prompt with lists of answers",
                '{"prompt": "2 + 2?", "right": ["4", "four"], "wrong": ["5"]} (samples.answer_key)',
            )
        key = found.setdefault(fields["prompt"], {})
        for kind, answers in zip(("right", "wrong"), lists, strict=True):
            key |= {" ".join(answer.split()): kind for answer in answers or []}
    return found


def samples_of(run: RunState, tokenizer: PreTrainedTokenizerBase, data: Prepared, engine: Engine) -> Samples:
    """The samples of a run."""
    return Samples(
        run.folder / SAMPLES,
        choose_prompts(run.config, tokenizer, data.template, data.heldout),
        tokenizer,
        data.template.end_of_turn or frozenset({int(tokenizer.eos_token_id)}),
        run.config.samples,
        engine,
        run.config.packing.tokens_without_grad,
    )


@dataclass(frozen=True)
class Answer:
    """An answer and what samples.jsonl says of it."""

    text: str
    measures: Mapping[str, Any]


class Samples:
    """Answers the prompts at every evaluation, appends to samples.jsonl, and shows base and policy side by side.

    Args:
        path: the file.
        prompts: what to answer.
        tokenizer: decodes.
        ends: ids that end an answer.
        section: how long answers are, and how many are shown.
        engine: runs the model; scores the answers.
        budget: tokens of a pass without gradients.
    """

    def __init__(
        self,
        path: Path,
        prompts: Sequence[Prompt],
        tokenizer: PreTrainedTokenizerBase,
        ends: frozenset[int],
        section: SamplesSection,
        engine: Engine,
        budget: int,
    ) -> None:
        self.path, self.prompts, self.tokenizer, self.ends = path, list(prompts), tokenizer, ends
        self.section, self.engine, self.budget = section, engine, budget
        longest = max((len(prompt.ids) for prompt in self.prompts), default=0)
        self.at_once = rows_at_once(len(self.prompts), longest, section.max_new_tokens, budget)
        self.base: list[Answer] = []
        self.chosen_nats: list[float | None] = []
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
        chosen = [self._without_end(prompt.chosen or []) for prompt in self.prompts]
        with torch.no_grad(), evaluating(policy), self.engine.autocast():
            if not self.base:
                with policy.disable_adapter():
                    written = self._written(model)
                    self.base = self._measured(written)
                    self.chosen_nats = self._nats(chosen)
            written = self._written(model)
            with policy.disable_adapter():
                made = self._measured(written)
        return [
            {
                "step": step,
                "sample": number,
                "prompt": spoken(self.tokenizer, prompt.ids),
                "row": prompt.row,
                "chosen": self._text(prompt.chosen) if prompt.chosen is not None else None,
                "rejected": self._text(prompt.rejected) if prompt.rejected is not None else None,
                "base": base.text,
                "policy": answer.text,
                "chosen_nats": self.chosen_nats[number],
                **{f"base_{name}": value for name, value in base.measures.items()},
                **{f"policy_{name}": value for name, value in answer.measures.items()},
            }
            for number, (prompt, base, answer) in enumerate(zip(self.prompts, self.base, made, strict=True))
        ]

    def _measured(self, written: Sequence[tuple[list[int], bool]]) -> list[Answer]:
        """Answers with their measures; the model is the base."""
        costs = self._nats([ids for ids, _ in written])
        answers = []
        for prompt, (ids, ended), cost in zip(self.prompts, written, costs, strict=True):
            text = self._text(ids)
            known = prompt.key.get(" ".join(text.split()), "other") if prompt.key else None
            loops = not ended and is_loop(ids)
            answers.append(Answer(text, {"ended": ended, "loops": loops, "nats": cost, "known": known}))
        return answers

    def _nats(self, answers: Sequence[list[int]]) -> list[float | None]:
        """Nats per token of an answer to each prompt, under the model as it is; None of an empty one."""
        costs: list[float | None] = [None] * len(answers)
        filled = [number for number, ids in enumerate(answers) if ids]
        pairs = [TokenPair(n, self.prompts[n].ids, answers[n], answers[n]) for n in filled]
        if pairs:
            logps = self.engine.score_all(pairs, self.budget).logps[: len(pairs)]
            for number, logp in zip(filled, logps.tolist(), strict=True):
                costs[number] = round(-logp / len(answers[number]), 4)
        return costs

    def _without_end(self, ids: Sequence[int]) -> list[int]:
        """An answer of the dataset up to the token that ends it, as a written one is measured too."""
        return list(itertools.takewhile(lambda token: token not in self.ends, ids))

    def _written(self, model: nn.Module) -> list[tuple[list[int], bool]]:
        """The answers to all prompts: together, or to fewer at a time when memory runs out."""
        new_tokens = self.section.max_new_tokens
        while True:
            made: list[tuple[list[int], bool]] = []
            try:
                with Progress("answering prompts", len(self.prompts) * new_tokens, unit="tokens") as progress:
                    for first in range(0, len(self.prompts), self.at_once):
                        prompts = [prompt.ids for prompt in self.prompts[first : first + self.at_once]]
                        made += greedy(model, prompts, self.ends, new_tokens, progress.advance)
                return made
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

        (written,) = written_of(rows)
        answers = [row["policy"] for row in rows]
        if answers == self.shown:
            console.say(f"samples at step {step}: the same answers as before")
            return
        self.shown = answers
        rows = rows[: self.section.shown]
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
        if step:
            console.say(written.line())


def _lines(text: str) -> Any:
    """A text for the terminal: its lines, nothing that a terminal would obey; of a long one the end."""
    from rich.text import Text

    text = "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())
    text = text if len(text) <= SHOWN else "..." + text[3 - SHOWN :]
    return Text("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text))
