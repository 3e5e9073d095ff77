"""Engines that give logits for token ids: transformers, or llama.cpp through llama-cpp-python."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

Encode = Callable[[str], list[int]]


class Scorer(Protocol):
    """Something that predicts the next token.

    Attributes:
        engine: what computes, for the table.
    """

    engine: str

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits for each position: float32 [tokens, vocabulary]."""

    def generate(self, ids: Sequence[int], ends: frozenset[int], new_tokens: int) -> list[int]:
        """The likeliest continuation, up to and without a token that ends it."""


class TorchScorer:
    """A causal language model of transformers (or PEFT)."""

    def __init__(self, model: Any, engine: str = "transformers") -> None:
        self.model, self.engine = model.eval(), engine
        self._device = next(model.parameters()).device

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            out = self.model(input_ids=torch.tensor([list(ids)], device=self._device), use_cache=False)
        return out.logits[0].float().cpu()

    def generate(self, ids: Sequence[int], ends: frozenset[int], new_tokens: int) -> list[int]:
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


@contextlib.contextmanager
def torch_scorer(model: Any, engine: str) -> Iterator[Scorer]:
    """A model on the GPU, where there is one, as a scorer; it is freed at the end."""
    if torch.cuda.is_available():
        model.to("cuda")
    scorer = TorchScorer(model, engine)
    yield scorer
    scorer.model = None


def has_llama_cpp() -> bool:
    """Whether llama-cpp-python is installed (looked up, not imported)."""
    return importlib.util.find_spec("llama_cpp") is not None


class LlamaScorer:
    """A GGUF file in llama.cpp.

    Args:
        path: the file.
        context: tokens of the longest sequence.
        lora: a GGUF adapter to run on it.
    """

    engine = "llama.cpp"

    def __init__(self, path: Path, context: int, lora: Path | None = None) -> None:
        import llama_cpp

        self._llama = llama_cpp.Llama(
            model_path=str(path),
            lora_path=str(lora) if lora else None,
            n_ctx=context,
            n_batch=min(512, context),
            logits_all=True,
            n_gpu_layers=-1,
            n_threads=torch.get_num_threads(),
            verbose=False,
        )

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        self._llama.reset()
        self._llama.eval(list(ids))
        return torch.from_numpy(self._llama.scores[: len(ids)].copy())

    def generate(self, ids: Sequence[int], ends: frozenset[int], new_tokens: int) -> list[int]:
        made: list[int] = []
        self._llama.reset()
        self._llama.eval(list(ids))
        while len(made) < new_tokens:
            token = int(self._llama.scores[self._llama.n_tokens - 1].argmax())
            if token in ends:
                break
            made.append(token)
            self._llama.eval([token])
        return made

    def close(self) -> None:
        """Free the model."""
        self._llama.close()
