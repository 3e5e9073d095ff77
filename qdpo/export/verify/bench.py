"""What the models of one verification share: room, context, and whether they can be streamed at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdpo.export.verify.room import Room
from qdpo.export.verify.scorers import Scorer, TorchScorer
from qdpo.export.verify.streams import Reading, StreamScorer
from qdpo.export.whole import model_with
from qdpo.model.merged import MergedModel
from qdpo.model.skeleton import skeleton
from qdpo.model.streamed import BEGIN, NotStreamableError, Streamed


@dataclass(frozen=True)
class Bench:
    """Where models are scored.

    Attributes:
        room: for hidden states and distributions.
        device: where torch computes.
        context: tokens of the longest sequence, written answers included.
        not_streamed: why models are loaded whole; None where they are streamed.
        vllm: the Python whose vLLM scores model folders; None where torch does.
    """

    room: Room
    device: torch.device
    context: int
    not_streamed: str | None
    vllm: Path | None = None

    @contextmanager
    def torch_scorer(
        self,
        config: dict[str, Any],
        names: Collection[str],
        read: Callable[[str], Tensor],
        dtype: torch.dtype,
        engine: str,
    ) -> Iterator[Scorer]:
        """A model that torch computes, as a scorer: streamed where that is possible, else whole until the end.

        Args:
            config: contents of config.json.
            names: its tensors; a head that is the embedding may be left out.
            read: gives one of them.
            dtype: what it computes in.
            engine: for the table.

        Raises:
            InputMissingError: weights are missing.
        """
        if self.not_streamed is None:
            streamed = Streamed(skeleton(config, dtype), self.device)
            yield StreamScorer(streamed, Reading(streamed, names, read), engine, self.room)
            return
        with whole_scorer(model_with(config, ((name, read(name)) for name in names), dtype), engine) as scorer:
            yield scorer


@contextmanager
def whole_scorer(model: Any, engine: str) -> Iterator[Scorer]:
    """A model in memory, on the GPU where there is one, as a scorer; it is freed at the end."""
    if torch.cuda.is_available():
        model.to("cuda")
    scorer = TorchScorer(model, engine)
    yield scorer
    scorer.model = None


def why_not_streamed(model: MergedModel, attention: str | None) -> str | None:
    """Why a model must be loaded whole to be scored; None where its parts can be told apart.

    Args:
        model: any model of the run's architecture.
        attention: implementation of the attention.
    """
    try:
        streamed = Streamed(skeleton(model.config, torch.float32, attention), torch.device("cpu"))
        unknown = {name for part in streamed.parts.values() for name in part} - set(model.names) - streamed.tied
        if unknown:
            return f"transformers makes {min(unknown)} of tensors that are stored in another way"
        shapes = {name: tensor.shape for name, tensor in streamed.model.state_dict().items()}
        nothing = {name: torch.zeros(()).expand(shapes[name]) for name in streamed.parts[BEGIN]}
        with torch.inference_mode(), streamed.lending(nothing):
            streamed.begin([0, 0])
    except (NotStreamableError, ImportError, ValueError, KeyError, TypeError, AttributeError) as error:
        return str(error).splitlines()[0]
    return None
