"""The small GPU: one half-precision type in the whole graph, the right one for the card, and fp32 adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training.tiny import Tiny

from qdpo.config.resolve import resolve
from qdpo.data.pairs import TokenPair
from qdpo.engine import logps
from qdpo.engine.engine import Engine
from qdpo.hardware import GIB, Device, choose_dtype
from qdpo.model.load import load_base
from qdpo.model.lora import attach, disable_dropout
from qdpo.planner.calibrate import make_step
from qdpo.planner.cards import card_named
from qdpo.planner.data import lengths_for
from qdpo.planner.find import find_base
from qdpo.planner.plan import plan

CPU = Device("cpu", "CPU", None, 1)
CAPABILITIES = [(7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)]
HALF = {torch.float16, torch.bfloat16}


class Types(TorchDispatchMode):
    """Records the type of every tensor that goes into an operation or comes out of one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()
        self.products: set[torch.dtype] = set()
        self.logits: set[torch.dtype] = set()
        self.in_head = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        found = {leaf.dtype for leaf in tree_leaves([args, kwargs, result]) if isinstance(leaf, torch.Tensor)}
        self.seen |= found
        if func.overloadpacket.__name__ in ("mm", "addmm_"):
            if self.in_head:
                self.logits |= found
            else:
                self.products |= found
        return result

    def watching(self, logits_of: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """The head's product, known as such."""

        def watched(*args: Any) -> torch.Tensor:
            self.in_head = True
            try:
                return logits_of(*args)
            finally:
                self.in_head = False

        return watched


def graph_types(root: Any) -> set[torch.dtype]:
    """Types of all tensors that a graph keeps for its backward pass."""
    found: set[torch.dtype] = set()
    queue, visited = [root], set()
    while queue:
        node = queue.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        saved: Iterable[Any] = [
            getattr(node, name)
            for name in dir(node)
            if name.startswith("_saved_") and not name.startswith("_saved_self_")
        ]
        saved = [*saved, *getattr(node, "saved_tensors", ())]
        found |= {leaf.dtype for leaf in tree_leaves(list(saved)) if isinstance(leaf, torch.Tensor)}
        queue += [following for following, _ in node.next_functions]
    return found


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda c: f"{c[0]}.{c[1]}")
def test_one_half_precision_type_in_the_whole_step(
    capability: tuple[int, int], tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype, reason = choose_dtype("auto", Device("cuda", "a card", capability, 16 * GIB))
    assert dtype == (torch.bfloat16 if capability >= (8, 0) else torch.float16)
    assert f"{capability[0]}.{capability[1]}" in reason
    name = str(dtype).removeprefix("torch.")
    config = resolve(str(tiny.preset), [f"model.dtype={name}", "train.optim=adamw_torch"]).config
    base = load_base(config.model, CPU)
    assert base.model.config._attn_implementation == "sdpa"
    policy = attach(base.model, config.lora, 0)
    disable_dropout(policy)
    pairs = [TokenPair(i, [0, 5, 6, 7 + i], [9, 10, 1], [11, 12, 13, 1]) for i in range(4)]
    step = make_step(policy, dtype, CPU, config, pairs)
    step.engine = Engine(policy.get_base_model(), CPU.torch, partial(torch.autocast, "cpu", dtype))
    if dtype == torch.float16:
        step.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    scores = step.engine.score(pairs, range(4))
    kept = graph_types(scores.logps.grad_fn)
    assert dtype in kept
    types = Types()
    monkeypatch.setattr(logps, "logits_of", types.watching(logps.logits_of))
    with types:
        step()
    other = HALF - {dtype}
    assert not other & (types.seen | kept)
    assert types.products == {dtype}  # every matrix product of the step is in half precision
    assert types.logits == {torch.float32}  # but the logits', which are not rounded to it

    model = policy.get_base_model()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert not [n for n, t in tensors if t.dtype in other]
    states = [t for state in step.optimizer.state.values() for t in state.values()]
    assert {t.dtype for t in states} == {torch.float32}
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            assert parameter.dtype == torch.float32
            assert bool(torch.isfinite(parameter).all())
    assert model.get_input_embeddings().weight.dtype == dtype
    assert model.get_output_embeddings().weight.dtype == dtype


def test_a_bfloat16_anywhere_would_be_seen() -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    with Types() as types:
        y = (weight.bfloat16() @ torch.ones(2, 2, dtype=torch.bfloat16)).sum()
        y.backward()
    assert torch.bfloat16 in types.seen
    assert torch.bfloat16 in types.products
    assert torch.bfloat16 in graph_types((weight.bfloat16() * weight.bfloat16()).grad_fn)


def test_garrulus_t4_fits_15_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdpo.planner.data.at_hand", lambda config: False)
    config = resolve("garrulus-t4").config
    assert config.model.dtype == "float16"
    assert config.model.attn_implementation == "sdpa"
    base, lengths = find_base(config.model.name), lengths_for(config)
    for name in ("15", "t4"):
        found = plan(config, base, card_named(name), "--gpu", lengths)
        assert found.verdict.kind == "fits"
        assert found.estimate.total < 15.0 * GIB
        assert found.dtype[0] == "float16"
    # embeddings and head are counted in 16 bits, not in 4
    assert found.estimate.parts["weights not in 4 bits"] == pytest.approx(2 * found.shape.unquantized, rel=1e-5)
    assert found.config.train.optim == "adamw_torch_fused"  # paging is not needed
    assert found.optimizer == "both Adam states are 0.34 GB, on the card"
