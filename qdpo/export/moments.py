"""Taking the second moments of a trained model's inputs, one layer in memory at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from qdpo.errors import UnavailableError
from qdpo.export.pairs import CALIBRATION_TEXTS, calibration_ids, plain_texts
from qdpo.export.source import TrainedRun
from qdpo.export.whole import computing_dtype
from qdpo.hardware import find_device
from qdpo.model.adapter import Adapter
from qdpo.model.moments import MOMENTS, About, Moment, Moments, moment_of, save_moments
from qdpo.model.skeleton import skeleton
from qdpo.model.streamed import BEGIN, END, NotStreamableError, Passage, Streamed
from qdpo.progress import Progress

TOKENS = 8192
"""Inputs of each layer that the moments are taken of, half from the run's conversations, half from plain text."""


def moments_of_run(run: TrainedRun) -> Moments | None:
    """The moments that lie beside a run's adapter; None where there are none, or they are another adapter's.

    Raises:
        InputMissingError: the file is damaged.
    """
    path = run.folder / MOMENTS
    if not path.is_file():
        return None
    moments = Moments(path)
    return moments if moments.about.adapter_sha256 == str(run.adapter_sha256) else None


def take_moments(run: TrainedRun, tokens: int = TOKENS) -> Moments:
    """Compute the moments of a run and keep them beside its adapter.

    What passes through the layers is what the trained model computes, merged into the base as it was trained.

    Args:
        run: a finished run.
        tokens: how many inputs of each layer, about.

    Raises:
        UnavailableError: the model cannot be taken apart into layers.
        QdpoError: its data cannot be read.
    """
    texts = calibration_texts(run, tokens)
    model, device = run.merged("trained"), find_device().torch
    try:
        streamed = Streamed(skeleton(model.config, computing_dtype()), device)
        if unknown := [name for names in streamed.parts.values() for name in names if not model.has(name)]:
            # experts are one tensor in memory, and one each in the file
            raise NotStreamableError(f"the base's file has no tensor {unknown[0]} and {len(unknown) - 1:,} others")
        moments, places = _taken(streamed, model.read, texts, Adapter(run.adapter))
    except NotStreamableError as error:
        raise UnavailableError(f"moments cannot be taken: {error}", "use --rounding nearest") from None
    count = sum(map(len, texts))
    about = About(
        str(run.adapter_sha256), count, "half the run's training conversations, half plain text of several domains"
    )
    save_moments(run.folder / MOMENTS, moments, places, about)
    return Moments(run.folder / MOMENTS)


def calibration_texts(run: TrainedRun, tokens: int = TOKENS) -> list[list[int]]:
    """Token ids: training conversations of the run for one half, plain text that comes with qdpo for the other.

    Conversations alone would have errors made up for where conversations show them, at the cost of everything else.

    Args:
        run: the run; its held-out pairs are not used, because exports are scored on them.
        tokens: how many, about.
    """
    half, talked, left = tokens // 2, [], tokens // 2
    for ids in calibration_ids(run):
        talked.append(ids[: max(left, 2)])
        left -= len(ids)
        if left <= 0:
            break
    tokenizer = AutoTokenizer.from_pretrained(run.tokenizer_files()[0].parent)
    plain = [tokenizer.encode(text) for text in plain_texts(CALIBRATION_TEXTS)]
    return [*talked, *(ids[: max(half // len(plain), 2)] for ids in plain)]


def _taken(
    streamed: Streamed, read: Callable[[str], Tensor], texts: list[list[int]], adapter: Adapter
) -> tuple[dict[str, Moment], dict[str, str]]:
    """Moments by the first weight that reads them, and which weight reads its inputs where."""
    moments: dict[str, Moment] = {}
    places: dict[str, str] = {}
    passage = Passage(streamed, texts, lambda rows, columns, dtype: torch.empty(rows, columns, dtype=dtype))
    layers = [part for part in streamed.parts if part not in (BEGIN, END)]
    with Progress("taking the moments of the layers' inputs", len(layers) + 1, unit="layers") as progress:
        for part in (BEGIN, *layers):
            weights = {name: streamed.lent(name, read(name)) for name in streamed.parts[part]}
            linears = _linears(streamed.model, part) if part != BEGIN else {}
            with _listening(linears) as heard:
                passage.run(part, weights)
            for leader, (names, inputs) in heard.items():
                seen = torch.cat(inputs)
                inputs.clear()
                directions = [adapter.directions(f"{name}.weight") for name in names]
                given = [a.to(seen.device) for a in directions if a is not None]
                moments[leader] = moment_of(seen, torch.cat(given) if given else seen.new_empty(0, seen.shape[1]))
                places |= {f"{name}.weight": leader for name in names}
            progress.advance(1)
    return moments, places


def _linears(model: nn.Module, part: str) -> dict[str, nn.Module]:
    """The linear layers of a part, by name."""
    return {
        f"{part}.{name}": module
        for name, module in model.get_submodule(part).named_modules()
        if isinstance(module, nn.Linear)
    }


_Heard = dict[str, tuple[list[str], list[Tensor]]]
"""First of the layers that read the same inputs -> names of all of them, and the inputs [tokens, columns]."""


@contextlib.contextmanager
def _listening(linears: dict[str, nn.Module]) -> Iterator[_Heard]:
    """Collect what linear layers are given; those that are given the same tensor are heard as one."""
    heard: _Heard = {}
    leader: dict[str, str] = {}
    last: list[Any] = [None, ""]

    def hear(name: str, inputs: Tensor) -> None:
        if name not in leader:
            leader[name] = last[1] if inputs is last[0] else name
            heard.setdefault(leader[name], ([], []))[0].append(name)
        last[:] = [inputs, leader[name]]
        if leader[name] == name:
            heard[name][1].append(inputs.detach().flatten(0, -2).float())

    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: hear(name, args[0]))
        for name, module in linears.items()
    ]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()
