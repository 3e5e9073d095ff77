"""Engines that predict the next token: transformers with a whole model, or llama.cpp through llama-cpp-python.

A model that is streamed through memory is scored by `qdpo.export.verify.streams`.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from qdpo.model.stream_memory import CHUNK_BYTES
from qdpo.progress import Progress

Encode = Callable[[str], list[int]]

LLAMA_ERROR = 4
"""llama.cpp's level of errors (ggml.h: GGML_LOG_LEVEL_ERROR)."""


@dataclass(frozen=True)
class Asked:
    """Predictions that are asked for.

    Attributes:
        ids: tokens of a sequence.
        positions: the predictions after which of them.
    """

    ids: Sequence[int]
    positions: range

    def chunks(self, vocabulary: int) -> Iterator[slice]:
        """The positions in pieces whose logits are `CHUNK_BYTES` at most."""
        rows = max(1, CHUNK_BYTES // (4 * vocabulary))
        for start in range(self.positions.start, self.positions.stop, rows):
            yield slice(start, min(start + rows, self.positions.stop))


class Scorer(Protocol):
    """Something that predicts the next token.

    Attributes:
        engine: what computes, for the table.
    """

    engine: str

    def logits(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Tensor]]:
        """Logits at the positions asked for.

        Yields:
            which of `asked`, in order, and float32 [positions, vocabulary]: all of its positions, in pieces.
        """

    def writing_seconds(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
        """An estimate of how long `generate` takes, from the scoring that was done; 0 where that is no matter."""

    def generate(self, prompts: Sequence[Sequence[int]], ends: frozenset[int], new_tokens: int) -> list[list[int]]:
        """The likeliest continuation of each prompt, up to and without a token that ends it."""


class TorchScorer:
    """A causal language model of transformers (or PEFT) that is in memory."""

    def __init__(self, model: Any, engine: str = "transformers") -> None:
        self.model, self.engine = model.eval(), engine
        self._device = next(model.parameters()).device

    def logits(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Tensor]]:
        with Progress(f"scoring by {self.engine}", len(asked), unit="sequences") as progress:
            for number, one in enumerate(asked):
                with torch.inference_mode():
                    out = self.model(input_ids=torch.tensor([list(one.ids)], device=self._device), use_cache=False)
                yield number, out.logits[0, one.positions.start : one.positions.stop].float()
                progress.advance()

    def writing_seconds(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
        return 0.0

    def generate(self, prompts: Sequence[Sequence[int]], ends: frozenset[int], new_tokens: int) -> list[list[int]]:
        return [self._continue(ids, ends, new_tokens) for ids in prompts]

    def _continue(self, ids: Sequence[int], ends: frozenset[int], new_tokens: int) -> list[int]:
        made: list[int] = []
        cache, step = None, list(ids)
        with torch.inference_mode():
            while len(made) < new_tokens:
                out = self.model(
                    input_ids=torch.tensor([step], device=self._device), past_key_values=cache, use_cache=True
                )
                token = int(out.logits[0, -1].argmax())
                if token in ends:
                    break
                made.append(token)
                cache, step = out.past_key_values, [token]
        return made


def has_llama_cpp() -> bool:
    """Whether llama-cpp-python is installed (looked up, not imported)."""
    return importlib.util.find_spec("llama_cpp") is not None


_held: list[Any] = []
"""What C calls back and holds no reference to."""


@cache
def llama_cpp() -> Any:
    """llama-cpp-python, whose C library speaks of errors alone: the package takes its warnings for errors."""
    import llama_cpp as library

    @library.llama_log_callback
    def errors_only(level: int, text: bytes, _user_data: Any) -> None:
        if level == LLAMA_ERROR:
            sys.stderr.write(text.decode("utf-8", "replace"))

    library.llama_log_set(errors_only, None)
    _held.append(errors_only)
    return library


class LlamaScorer:
    """A GGUF file in llama.cpp.

    Args:
        path: the file.
        context: tokens of the longest sequence.
        lora: a GGUF adapter to run on it.
    """

    engine = "llama.cpp"

    def __init__(self, path: Path, context: int, lora: Path | None = None) -> None:
        # `logits_all` would keep a row of the vocabulary for each token of the context: logits are fetched here.
        self._llama = llama_cpp().Llama(
            model_path=str(path),
            lora_path=str(lora) if lora else None,
            n_ctx=context,
            n_batch=min(BATCH, context),
            n_gpu_layers=-1,
            n_threads=torch.get_num_threads(),
            n_threads_batch=torch.get_num_threads(),  # else all cores, which wait for one another on a busy machine
            verbose=False,
        )

    def logits(self, asked: Sequence[Asked]) -> Iterator[tuple[int, Tensor]]:
        with Progress("scoring by llama.cpp", sum(one.positions.stop for one in asked), unit="tokens") as progress:
            for number, one in enumerate(asked):
                self._llama.reset()
                for start in range(0, one.positions.stop, self._llama.n_batch):
                    rows = self._decode(one.ids[start : start + self._llama.n_batch], start)
                    wanted = range(max(start, one.positions.start), min(start + len(rows), one.positions.stop))
                    if wanted:
                        yield number, rows[wanted.start - start : wanted.stop - start].clone()
                    progress.advance(min(len(rows), one.positions.stop - start))

    def writing_seconds(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
        """By the time that one token takes now; the prompts, taken in many tokens at once, are not counted."""
        self._llama.reset()
        self._decode([0], 0)
        began = time.monotonic()
        self._decode([0], 1)
        return (time.monotonic() - began) * new_tokens * len(prompts)

    def generate(self, prompts: Sequence[Sequence[int]], ends: frozenset[int], new_tokens: int) -> list[list[int]]:
        return [self._continue(list(ids), ends, new_tokens) for ids in prompts]

    def _continue(self, ids: list[int], ends: frozenset[int], new_tokens: int) -> list[int]:
        made: list[int] = []
        self._llama.reset()
        step, done = ids, 0
        while len(made) < new_tokens:
            for start in range(0, len(step), self._llama.n_batch):
                rows = self._decode(step[start : start + self._llama.n_batch], done)
                done += len(rows)
            token = int(rows[-1].argmax())
            if token in ends:
                break
            made.append(token)
            step = [token]
        return made

    def _decode(self, ids: Sequence[int], past: int) -> Tensor:
        """Take in tokens behind `past` others; logits after each, in llama.cpp's own memory until the next call."""
        llama: Any = self._llama
        llama._ctx.kv_cache_seq_rm(-1, past, -1)
        llama._batch.set_batch(batch=list(ids), n_past=past, logits_all=True)
        llama._ctx.decode(llama._batch)
        shape = (len(ids), llama.n_vocab())
        return torch.from_numpy(np.ctypeslib.as_array(llama._ctx.get_logits(), shape=shape))

    def close(self) -> None:
        """Free the model."""
        self._llama.close()


BATCH = 128
"""Tokens that llama.cpp takes in at once: its buffers grow with them, by a row of the vocabulary each."""
