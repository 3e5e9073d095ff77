"""A causal language model of transformers that computes without being in memory: its weights come part by part.

The parts are what lies before the layers (the embedding), each layer, and what lies behind them (the head). All
sequences pass a part before the next part's weights are read, and wait between parts as hidden states.

The model's own code computes, its forward pass three times over: with stand-ins for the layers that note what the pass
gives each of them (masks, positions, rotations); each layer alone, with what was noted; and once more with stand-ins,
of which the last returns the hidden states that the layers have made, so that norm, head and scaling follow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]
"""Tensors by their names in the model's state."""

BEGIN, END = "begin", "end"
"""The parts around the layers; a layer is called by its name in the model."""


class NotStreamableError(Exception):
    """The model does something between its layers, or has none that could be told apart."""


class Streamed:
    """A model on the meta device, and the names of its parts.

    Args:
        model: a *ForCausalLM without weights, its buffers in memory; it is moved to `device` and set to evaluation.
        device: where it computes.

    Raises:
        NotStreamableError: it has no row of layers.

    Attributes:
        parts: names of the parts in order, and the names of the tensors that each needs. A small tensor that belongs to
            neither embedding, layers nor head is needed at both ends; so is an embedding that is the head.
        tied: names of tensors that are the embedding under another name.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model, self.device = model.eval(), device
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)
        self._decoder: Any = model.get_decoder()
        self._names = {id(module): name for name, module in model.named_modules()}
        self._layers = _row_of_layers(self._decoder)
        self._prefix = self._names[id(self._decoder)] + "."
        self._dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        self.parts = self._sort_tensors()
        shared = next(iter(model.get_input_embeddings().parameters()))
        names = [name for name, tensor in model.named_parameters(remove_duplicate=False) if tensor is shared]
        self.tied = set(names[1:])

    def _sort_tensors(self) -> dict[str, list[str]]:
        layers = [self._names[id(layer)] for layer in self._layers]
        parts: dict[str, list[str]] = {BEGIN: [], **{name: [] for name in layers}, END: []}
        row = layers[0].rpartition(".")[0] + "."
        embedding, head = (
            self._names.get(id(module), " ") + "."
            for module in (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        )
        for name in self._dtypes:
            if name.startswith(row):
                parts[row + name.removeprefix(row).partition(".")[0]].append(name)
                continue
            if not name.startswith(head) and name.startswith(self._prefix):
                parts[BEGIN].append(name)
            if not name.startswith(embedding):
                parts[END].append(name)
        return parts

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return next(self.model.get_input_embeddings().parameters()).dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, as the model computes with them."""
        state = self.model.state_dict()
        return sum(state[name].nbytes for name in state if name not in self.tied)

    def lent(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor as the model computes with it: on its device, in the type that it has in the model's state."""
        return tensor.to(self.device, self._dtypes[name])

    @contextlib.contextmanager
    def lending(self, weights: Weights) -> Iterator[None]:
        """Let the model have weights, those of one part, for as long as the context lasts."""
        places = []
        for name, tensor in weights.items():
            path, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(path)
            table: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
            places.append((table, leaf, table[leaf]))
            table[leaf] = tensor
        try:
            yield
        finally:
            for table, leaf, before in places:
                table[leaf] = before

    def begin(self, ids: Sequence[int], cache: Any = None) -> tuple[Tensor, list[_Call]]:
        """Everything before the layers, while the weights of the part `BEGIN` are lent.

        Args:
            ids: tokens of one sequence, or those that follow what the cache holds.
            cache: keys and values of the sequence so far, as transformers keeps them.

        Returns:
            hidden states [1, tokens, hidden], and what each layer is given beside them.

        Raises:
            NotStreamableError: the model changes the hidden states between its layers.
        """
        calls: list[_Call] = []
        passed: list[Tensor] = []

        def note(index: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if index != len(calls) or (passed and hidden is not passed[0]):
                raise NotStreamableError(f"{type(self.model).__name__} works on hidden states between its layers")
            calls.append((args, kwargs))
            passed.append(hidden)
            return hidden

        with self._stand_ins(note):
            self._decoder(
                input_ids=torch.tensor([list(ids)], device=self.device),
                past_key_values=cache,
                use_cache=cache is not None,
            )
        if len(calls) != len(self._layers):
            raise NotStreamableError(f"{type(self.model).__name__} passes over some of its layers")
        return passed[0], calls

    def layer(self, index: int, hidden: Tensor, call: _Call) -> Tensor:
        """One layer, whose weights are lent, on one sequence: hidden states [1, tokens, hidden] in and out."""
        args, kwargs = call
        out = self._layers[index](hidden, *args, **kwargs)
        if not isinstance(out, Tensor) or out.shape != hidden.shape:
            raise NotStreamableError(f"{type(self._layers[index]).__name__} gives more than hidden states")
        return out

    def end(self, hidden: Tensor) -> Tensor:
        """Everything behind the layers, while the weights of the part `END` are lent.

        Args:
            hidden: what the last layer has given for any positions, [positions, hidden].

        Returns:
            logits, float32 [positions, vocabulary].
        """
        last = len(self._layers) - 1

        def give(index: int, given: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return hidden.unsqueeze(0) if index == last else given

        with self._stand_ins(give):
            logits: Tensor = self.model(inputs_embeds=hidden.unsqueeze(0), use_cache=False).logits
        return logits[0].float()

    @contextlib.contextmanager
    def _stand_ins(self, function: Callable[..., Tensor]) -> Iterator[None]:
        """Have `function(index, hidden, ...)` called in place of each layer."""
        for index, layer in enumerate(self._layers):
            layer.__dict__["forward"] = partial(function, index)
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.__dict__["forward"]


_Call = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer is given beside the hidden states, by position and by name."""


class Passage:
    """Sequences on their way through a streamed model.

    Args:
        streamed: the model.
        sequences: tokens of each.
        room: gives memory for the hidden states of all sequences: tokens, hidden size, dtype -> [tokens, hidden].
        caches: for each sequence the keys and values of what came before; None for whole sequences.
    """

    def __init__(
        self,
        streamed: Streamed,
        sequences: Sequence[Sequence[int]],
        room: Callable[[int, int, torch.dtype], Tensor],
        caches: Sequence[Any] | None = None,
    ) -> None:
        self.streamed, self.sequences = streamed, sequences
        self._caches = caches or [None] * len(sequences)
        hidden = room(sum(map(len, sequences)), streamed.hidden_size, streamed.dtype)
        self.states = list(hidden.split([len(ids) for ids in sequences]))
        self._calls: list[list[_Call]] = []
        self._index = {name: number for number, name in enumerate([*streamed.parts][1:-1])}

    def run(self, part: str, weights: Weights, advance: Callable[[int], None] = lambda sequences: None) -> None:
        """Take all sequences through a part, but for `END`; `advance` is told of each that has passed a layer."""
        with torch.inference_mode(), self.streamed.lending(weights):
            if part == BEGIN:
                self._begin()
                return
            index = self._index[part]
            for state, calls in zip(self.states, self._calls, strict=True):
                hidden = state.to(self.streamed.device).unsqueeze(0)
                state.copy_(self.streamed.layer(index, hidden, calls[index])[0])
                advance(1)

    def _begin(self) -> None:
        alike: dict[int, list[_Call]] = {}
        self._calls = []
        for ids, cache, state in zip(self.sequences, self._caches, self.states, strict=True):
            hidden, calls = self.streamed.begin(ids, cache)
            state.copy_(hidden[0])
            # Masks and rotations of sequences of one length are equal, unless the model makes them of the tokens.
            known = alike.setdefault(len(ids), calls)
            self._calls.append(known if cache is None and _equal(known, calls) else calls)

    def logits(self, asked: Iterable[tuple[int, slice]], weights: Weights) -> Iterator[Tensor]:
        """Predictions at positions of sequences: float32 [positions, vocabulary] for each, on the model's device."""
        with self.streamed.lending(weights):
            for number, rows in asked:
                with torch.inference_mode():  # not around the yield, where others compute
                    logits = self.streamed.end(self.states[number][rows].to(self.streamed.device))
                yield logits


def _row_of_layers(decoder: nn.Module) -> list[nn.Module]:
    """The decoder's own longest list of modules."""
    rows = [list(child) for child in decoder.children() if isinstance(child, nn.ModuleList)]
    if not rows:
        raise NotStreamableError(f"{type(decoder).__name__} has no row of layers")
    return max(rows, key=len)


def _equal(one: Any, other: Any) -> bool:
    """Whether two calls were given the same."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and torch.equal(one, other))
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return one is other or (type(one) is type(other) and bool(one == other))
