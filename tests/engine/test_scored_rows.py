"""The last layer's MLP on scored rows only: what it computes, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from engine.test_fuse import adapted, assert_same, run
from engine.toys import in_float64, make_pairs

from qdpo.engine import fuse as fuse_module
from qdpo.engine.fuse import fuse
from qdpo.engine.layout import build_pack
from qdpo.engine.recompute import checkpoint_layers


@pytest.mark.parametrize("checkpointed", [0, 2])
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_only_scored_rows_are_computed_and_nothing_changes(
    name: str, checkpointed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_float64(monkeypatch)
    policy = adapted(name)
    policy.train()
    checkpoint_layers(policy, checkpointed)
    plain = run(policy)
    rows: list[int] = []
    apply = fuse_module.FusedMlp.apply

    def counting(x: torch.Tensor, *rest: object) -> torch.Tensor:
        rows.append(x.shape[1])
        return apply(x, *rest)

    monkeypatch.setattr(fuse_module.FusedMlp, "apply", counting)
    fusion = fuse(policy)
    assert fusion.skips_unscored
    rows.clear()
    assert_same(run(policy), plain, 1e-10)
    pairs = make_pairs()
    pack = build_pack(pairs, range(len(pairs)))
    scored = len(set(pack.rows.tolist()))
    assert scored < pack.n_tokens
    again = [scored, pack.n_tokens] if checkpointed else []  # the last layer first
    assert rows == [pack.n_tokens, scored, *again]


def test_it_can_be_switched_off_and_undone() -> None:
    policy = adapted("llama")
    assert not fuse(policy, skip_unscored=False).skips_unscored
    assert not fuse(adapted("phi3")).skips_unscored  # no gated MLP to be found
    policy = adapted("llama")
    fusion = fuse(policy)
    fusion.undo()
    layer = policy.get_base_model().model.layers[-1]
    assert not layer._forward_pre_hooks
    assert "forward" not in layer.mlp.__dict__
