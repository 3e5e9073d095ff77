"""Letting a base or a run answer prompts, several times each, into a file that a kill leaves whole.

An answer depends on the seed, its prompt and its number alone: each draws from random numbers of its own. Prompts are
answered in groups that are the same however often the work is interrupted, because a model rounds a little otherwise
beside other prompts; so the file has the same bytes in the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache

from qdpo import console
from qdpo.data.pairs import Message
from qdpo.data.prepare import system_for
from qdpo.data.tokenise import Tokeniser
from qdpo.engine.decoding import Sampler, greedy, sampled
from qdpo.engine.engine import evaluating
from qdpo.errors import ConfigError, DataError, OutputError
from qdpo.evaluation.scoring import Side
from qdpo.evaluation.subject import Subject
from qdpo.grammar import agreed, counted
from qdpo.hardware import is_out_of_memory
from qdpo.model.source import is_local
from qdpo.pairing.journal import Journal
from qdpo.pairing.pieces import Prompt, are_texts, shortened, written
from qdpo.pairing.writing import Writing
from qdpo.progress import Progress, clock

TRIED = 8
"""Tokens that are written to see how long one takes."""
NAMED = 3
"""Prompts that are named in a message."""
WAY_OUT = "give the name of a new file with --out"


@dataclass
class Generated:
    """What was written.

    Attributes:
        prompts: in the file.
        answers: in the file.
        found: prompts that were there from an earlier, interrupted time.
        identical: answers left out because they are the same as another to their prompt.
        empty: answers left out because they are empty.
        cut: answers that did not end within the tokens that they had.
        alone: prompts with fewer than two different answers.
        too_long: prompts left out because the model has no room for them and an answer.
        special: prompts left out because they spell out special tokens (`data.special_text: drop`).
    """

    prompts: int = 0
    answers: int = 0
    found: int = 0
    identical: int = 0
    empty: int = 0
    cut: int = 0
    alone: int = 0
    too_long: list[Prompt] = field(default_factory=list)
    special: list[Prompt] = field(default_factory=list)

    def count(self, row: dict[str, Any]) -> None:
        """Count a line of the file."""
        self.prompts += 1
        self.answers += len(row["answers"])
        self.identical += row.get("identical", 0)
        self.empty += row.get("empty", 0)
        self.cut += sum(not answer["ended"] for answer in row["answers"])
        self.alone += len(row["answers"]) < 2

    def sentences(self) -> list[str]:
        """What a person should know of the answers, a sentence each."""
        said = []
        if self.identical:
            one = "answer is the same as another to its prompt, and is left out"
            many = "answers are the same as another to their prompt, and are left out"
            said.append(counted(self.identical, one, many))
        if self.empty:
            said.append(counted(self.empty, "answer is empty, and is left out", "answers are empty, and are left out"))
        if self.alone:
            what = counted(self.alone, "prompt has", "prompts have")
            said.append(f"{what} fewer than two different answers: nothing to compare")
        if self.cut:
            cut = f"{self.cut:,} of {counted(self.answers, 'answer')} {agreed(self.cut, 'was', 'were')} cut"
            said.append(f"{cut} (--max-new-tokens): they teach to stop there")
        return said


def generate(subject: Subject, prompts: Sequence[Prompt], journal: Journal, how: Writing) -> Generated:
    """Answer prompts, or go on where an interrupted process has stopped.

    Args:
        subject: the model.
        prompts: different ones.
        journal: the file: a line a prompt, with `prompt`, `answers` (each with `text`, `by` and `ended`) and `made`.
        how: how answers are written.

    Raises:
        OutputError: the file holds answers to other prompts, or made otherwise.
        DataError: no prompt can be asked.
        ConfigError: the template writes no conversations, and a prompt is one.
        DiskError: the disk is full; what was written stays.
    """
    done = Generated()
    asked = _Encoder(subject, how).encode(prompts, done)
    as_text = are_texts([prompt for prompt, _ in asked])
    made = _made(subject, how)
    refuse_others(journal, made)
    for number, (row, (prompt, _)) in enumerate(zip(journal.rows, asked, strict=False), 1):
        if row["prompt"] != written(prompt, as_text):
            raise OutputError(f"{journal.path}:{number} answers another prompt than the file of prompts has", WAY_OUT)
    if len(journal.rows) > len(asked):
        verb = agreed(len(asked), "is", "are")
        raise OutputError(
            f"{journal.path} has {counted(len(journal.rows), 'prompt')}, {len(asked):,} {verb} asked", WAY_OUT
        )
    journal.mend()
    for row in journal.rows:
        done.count(row)
    done.found = len(journal.rows)
    if done.found:
        console.note(f"{journal.path} has {done.found:,} of {counted(len(asked), 'prompt')}; going on")
    if done.found == len(asked):
        return done
    work = _Work(subject, how)
    work.expect(asked[done.found :])
    with Progress("writing answers", work.tokens(len(asked) - done.found), unit="tokens") as progress:
        while len(journal.rows) < len(asked):
            # from where its group begins, although a part of it may be there
            first = len(journal.rows) // work.group * work.group
            group = asked[first : first + work.group]
            answers = work.answers([ids for _, ids in group], [prompt for prompt, _ in group], progress.advance)
            missing = len(journal.rows) - first
            rows = [
                {"prompt": written(prompt, as_text), **_line(found, how), "made": made}
                for (prompt, _), found in zip(group[missing:], answers[missing:], strict=True)
            ]
            journal.append(rows)
            for row in rows:
                done.count(row)
    return done


class _Encoder:
    """From prompts to ids."""

    def __init__(self, subject: Subject, how: Writing) -> None:
        self.subject = subject
        context = getattr(getattr(subject.engine.model, "config", None), "max_position_embeddings", None)
        self.room = context - how.max_new_tokens if isinstance(context, int) else None
        if self.room is not None and self.room < 1:
            raise ConfigError(
                f"--max-new-tokens {how.max_new_tokens}: the model was made for {context:,} tokens, prompt included",
                "ask for shorter answers",
            )

    def encode(self, prompts: Sequence[Prompt], done: Generated) -> list[tuple[Prompt, list[int]]]:
        """The prompts that can be asked, with their ids; the others go to `done.too_long` and `done.special`."""
        template, limits = self.subject.template, self.subject.config.data
        tokeniser = Tokeniser(
            self.subject.tokenizer, template, limits.max_length, limits.max_prompt_length, limits.special_text
        )
        system = system_for(limits, template)
        asked = []
        for prompt in prompts:
            if template.source is None and len(prompt) > 1:
                raise ConfigError(
                    f'data.template: none writes plain text, and "{shortened(prompt)}" is a conversation',
                    "--set data.template=auto, or another template",
                )
            with_system = [Message("system", system), *prompt] if system and prompt[0].role != "system" else prompt
            if limits.special_text != "split" and any(map(tokeniser.marks.first, prompt)):
                done.special.append(prompt)
                continue
            ids = tokeniser.prompt(with_system)
            if self.room is not None and len(ids) > self.room:
                done.too_long.append(prompt)
            else:
                asked.append((prompt, ids))
        if done.special:
            _say_special(done.special, len(prompts), drop=limits.special_text == "drop")
        if done.too_long:
            named = "; ".join(f'"{shortened(prompt)}"' for prompt in done.too_long[:NAMED])
            console.warn(
                f"{len(done.too_long):,} of {counted(len(prompts), 'prompt')} left out: longer than {self.room:,} "
                f"tokens, which is what the model has beside an answer ({named})"
            )
        if not asked:
            raise DataError(
                "no prompt can be asked: all are too long for the model, or spell out special tokens",
                "shorter prompts or answers, or --set data.special_text=split",
            )
        return asked


def _say_special(found: Sequence[Prompt], total: int, *, drop: bool) -> None:
    """Prompts that spell out special tokens, named.

    Raises:
        DataError: they are not to be left out.
    """
    named = "; ".join(f'"{shortened(prompt)}"' for prompt in found[:NAMED])
    which = f"{len(found):,} of {counted(total, 'prompt')} {agreed(len(found), 'spells', 'spell')} out"
    said = f"{which} special tokens or marks of the chat template ({named})"
    if not drop:
        raise DataError(
            said, "--set data.special_text=split encodes them as text, --set data.special_text=drop leaves them out"
        )
    console.warn(f"{said}: left out")


class _Work:
    """Writes answers to groups of prompts."""

    def __init__(self, subject: Subject, how: Writing) -> None:
        self.subject, self.how = subject, how
        self.ends = subject.template.end_of_turn or frozenset({int(subject.tokenizer.eos_token_id)})
        self.group = max(1, how.batch_size // how.k)
        self.at_once = how.batch_size

    def tokens(self, prompts: int) -> int:
        """Tokens of answers at the most."""
        return prompts * self.how.k * self.how.max_new_tokens

    def expect(self, asked: Sequence[tuple[Prompt, list[int]]]) -> None:
        """Write a few tokens, and say how long all of them will take."""
        writers = list(dict.fromkeys(self.how.writers))
        group = [ids for _, ids in asked[: self.group]] * -(-self.how.k // len(writers))
        self._steps(group, writers[0], 1)  # what is slow once is not counted
        beginning, *each = self._steps(group, writers[0], 1 + TRIED)
        groups = len(writers) * -(-len(asked) // self.group)
        most = groups * (beginning + statistics.median(each) * (self.how.max_new_tokens - 1))
        answers = f"{counted(self.how.k * len(asked), 'answer')} of up to {self.how.max_new_tokens:,} tokens"
        console.say(f"{answers}: about {clock(max(most, 1))} if none ends earlier")

    def _steps(self, ids: list[list[int]], writer: str, tokens: int) -> list[float]:
        """Seconds of each step of writing some tokens."""
        stamps = [time.perf_counter()]
        self._write(ids, writer, None, tokens, lambda _: stamps.append(time.perf_counter()))
        return [after - before for before, after in pairwise(stamps)]

    def answers(
        self, ids: list[list[int]], prompts: Sequence[Prompt], advance: Callable[[int], object]
    ) -> list[list[dict[str, Any]]]:
        """The answers to a group of prompts, k each."""
        made: list[list[dict[str, Any]]] = [[] for _ in prompts]
        for writer in dict.fromkeys(self.how.writers):
            jobs = [
                (place, number)
                for place in range(len(prompts))
                for number, by in enumerate(self.how.writers)
                if by == writer
            ]
            seeds = [_seed(self.how.seed, prompts[place], number) for place, number in jobs]
            texts = self._together([ids[place] for place, _ in jobs], writer, seeds, advance)
            for (place, number), (text, ended) in zip(jobs, texts, strict=True):
                made[place].append({"text": text, "by": writer, "ended": ended, "number": number})
        for answers in made:
            answers.sort(key=lambda answer: answer["number"])
        return made

    def _together(
        self, ids: list[list[int]], writer: str, seeds: list[int], advance: Callable[[int], object]
    ) -> list[tuple[str, bool]]:
        """Answers side by side; fewer at a time where memory runs out."""
        while True:
            found: list[tuple[list[int], bool]] = []
            step = self.at_once
            try:
                for first in range(0, len(ids), step):
                    part = slice(first, first + step)
                    told = 0

                    def tell(tokens: int) -> None:
                        nonlocal told
                        told += tokens
                        advance(tokens)

                    found += self._write(ids[part], writer, seeds[part], self.how.max_new_tokens, tell)
                    # those that ended early are done all the same
                    advance(len(ids[part]) * self.how.max_new_tokens - told)
                decode = self.subject.tokenizer.decode
                return [(str(decode(made, skip_special_tokens=True)).strip(), ended) for made, ended in found]
            except Exception as error:
                if not is_out_of_memory(error) or step == 1:
                    raise
            clear_device_cache(garbage_collection=True)
            self.at_once = -(-min(step, len(ids)) // 2)
            console.warn(f"out of memory: {self.at_once} answers at a time from here on")

    def _write(
        self,
        ids: list[list[int]],
        writer: str,
        seeds: list[int] | None,
        tokens: int,
        advance: Callable[[int], object],
    ) -> list[tuple[list[int], bool]]:
        engine, side = self.subject.engine, self._side(writer)
        with side(), engine.autocast(), evaluating(engine.model):
            if seeds is None or self.how.temperature == 0:
                ends = frozenset() if seeds is None else self.ends
                return greedy(engine.model, ids, ends, tokens, advance)
            sampler = Sampler(self.how.temperature, self.how.top_p, seeds)
            return sampled(engine.model, ids, self.ends, tokens, sampler, advance)

    def _side(self, writer: str) -> Side:
        if writer == "base":
            return self.subject.base
        return self.subject.policy or contextlib.nullcontext


def _line(answers: list[dict[str, Any]], how: Writing) -> dict[str, Any]:
    """The different answers of a prompt that say something, and how many were left out."""
    kept: dict[str, dict[str, Any]] = {}
    empty = 0
    for answer in answers:
        if answer["text"]:
            kept.setdefault(answer["text"], {key: answer[key] for key in ("text", "by", "ended")})
        else:
            empty += 1
    line: dict[str, Any] = {"answers": list(kept.values())}
    if identical := how.k - empty - len(kept):
        line["identical"] = identical
    return {**line, "empty": empty} if empty else line


def _seed(seed: int, prompt: Prompt, number: int) -> int:
    digest = hashlib.sha256(f"{seed}/{number}".encode())
    for message in prompt:
        data = message.content.encode("utf-8", "surrogatepass")
        digest.update(f"/{message.role}:{len(data)}:".encode() + data)
    return int.from_bytes(digest.digest()[:8], "little")


def _made(subject: Subject, how: Writing) -> dict[str, Any]:
    """What the answers of a file are made by; one file has the answers of one making."""
    about = subject.about
    name = str(about["base"])
    made = {
        "base": Path(name).name if is_local(name) else name,
        "weights": str(about["weights_sha256"])[:16],
        "quantization": about["quantization"],
        "template": subject.template.sha256[:16],
    }
    if how.by != "base":
        made["adapter"] = str(about["adapter_sha256"])[:16]
    return made | asdict(how)


def refuse_others(journal: Journal, made: dict[str, Any]) -> None:
    """Refuse to go on with a file of something else, or of answers that were made otherwise.

    Args:
        journal: the file.
        made: what its answers are made by, as far as that is known.

    Raises:
        OutputError: it is.
    """
    for number, row in enumerate(journal.rows, 1):
        before = row.get("made")
        if not isinstance(before, dict) or not isinstance(row.get("answers"), list) or "prompt" not in row:
            raise OutputError(f"{journal.path}:{number} is not from qdpo pairs generate; it is left as it is", WAY_OUT)
        differs = [key for key in made if before.get(key) != made[key]]
        if differs:
            said = ", ".join(f"{key} {before.get(key)} instead of {made[key]}" for key in differs)
            raise OutputError(f"{journal.path} has answers that were made otherwise: {said}", WAY_OUT)
