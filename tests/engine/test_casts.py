"""Adapters cast once a pass: the values of the moment, whoever changed them, and one launch for many."""

from __future__ import annotations

import torch
from engine.test_fuse import adapted, run
from torch.utils._python_dispatch import TorchDispatchMode

from qdpo.engine.casts import Casts
from qdpo.engine.fuse import fuse

HALF = torch.bfloat16


def test_without_autocast_there_are_no_copies() -> None:
    weight, casts = torch.ones(3, 2), Casts()
    casts.add([weight])
    casts.refresh("cpu")
    assert casts(weight, torch.float32) is not None
    assert casts(weight, torch.float32).data_ptr() == weight.data_ptr()


def test_a_pass_uses_one_copy_and_the_next_one_sees_what_changed() -> None:
    weight, casts = torch.ones(3, 2), Casts()
    casts.add([weight, weight])
    assert len(casts.weights) == 1
    with torch.autocast("cpu", HALF):
        casts.refresh("cpu")
        first = casts(weight, HALF)
        assert first is casts(weight, HALF)
        # as bitsandbytes' kernels do it: torch does not learn of it
        weight.data.fill_(2.0)
        casts.refresh("cpu")
    assert casts(weight, HALF).eq(2.0).all()


def test_a_weight_that_changed_within_a_pass_is_cast_anew() -> None:
    weight, casts = torch.ones(3, 2), Casts()
    casts.add([weight])
    with torch.autocast("cpu", HALF):
        casts.refresh("cpu")
    with torch.no_grad():
        weight.fill_(3.0)
    assert casts(weight, HALF).eq(3.0).all()


class Copies(TorchDispatchMode):
    """Counts conversions of one shape, and of lists."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.single, self.lists = shape, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        self.lists += name == "_foreach_copy_"
        self.single += name == "_to_copy" and args[0].shape == self.shape
        return func(*args, **(kwargs or {}))


def test_a_training_pass_casts_no_adapter_by_itself() -> None:
    policy = adapted("llama", torch.float32)
    plain = run(policy)
    fuse(policy)
    a = next(parameter for name, parameter in policy.named_parameters() if "lora_A" in name and parameter.requires_grad)
    with torch.autocast("cpu", HALF), Copies(a.shape) as copies:
        half = run(policy)
    assert copies.lists == 1
    # gradients of this shape go back to fp32, and no weight is cast
    gradients = [g for g in half[1] if g.shape == a.shape]
    assert copies.single == len(gradients)
    for mine, theirs in zip(half[1], plain[1], strict=True):
        assert (mine - theirs).norm() <= 0.1 * theirs.norm() + 1e-3
