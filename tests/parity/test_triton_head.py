"""The log-probability head against TRL's own Triton kernel, which Triton's interpreter runs on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from parity import triton_head
from parity.triton_head import CASES, ROWS, Case, Inputs, inputs_of
from safetensors.torch import load_file
from torch import Tensor

import qdpo
from qdpo.engine.logps import Head, score_tokens

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is made for Linux")

# Rounding of sums of 5,000 terms; one rounding of the largest logit, which TRL keeps in the type that it computes in.
VALUE = {torch.float32: 1e-6, torch.bfloat16: 2**-8}
"""How far a log-probability or an entropy may be off, as a share of the largest logit."""
MEAN = {torch.float32: 1e-7, torch.bfloat16: 2**-14}
"""The same for the mean of all logits, where roundings cancel."""
GRADIENT = {torch.float32: 2e-6, torch.bfloat16: 2**-6}
"""How far a gradient may be off, as a share of its largest entry."""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What the kernel says of all cases."""
    if Version(version("triton")) < Version("3.7"):
        pytest.skip(f"the interpreter of Triton {version('triton')} does not work with numpy 2.4; that of 3.7 does")
    out = tmp_path_factory.mktemp("triton") / "results.safetensors"
    places = [str(Path(qdpo.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, places))}
    command = [sys.executable, str(triton_head.__file__), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(out)


def off(kernel: dict[str, Tensor], case: Case, given: Inputs, softcap: float | None) -> dict[str, float]:
    """How far the head is from the kernel, by statistic, in units of what rounding explains."""
    head = Head(given.weight, given.bias, softcap, case.scale)
    scores = score_tokens(given.hidden, head, given.targets, squares=True)
    (gradient,) = torch.autograd.grad((scores.logps * given.upstream).sum(), given.hidden)
    assert scores.log_squares is not None
    exact = inputs_of(case)
    bias = 0.0 if exact.bias is None else exact.bias.double()
    logits = (exact.hidden.detach().double() @ exact.weight.double().T + bias) * case.scale
    if case.softcap is not None:
        logits = case.softcap * torch.tanh(logits / case.softcap)
    largest = float(logits.abs().max())
    best = logits.topk(2).values
    # where two logits are as good as equal, rounding decides which one is the largest
    clear = best[:, 0] - best[:, 1] > VALUE[case.dtype] * largest
    assert clear.sum() >= ROWS * 3 // 4

    def theirs(name: str) -> Tensor:
        return kernel[f"{case}/{name}"].double()

    def gap(name: str, ours: Tensor) -> float:
        return float((ours.detach().double() - theirs(name)).abs().max())

    wrong = (scores.top1 != theirs("is_top1").bool()) & clear
    return {
        "logps": gap("logps", scores.logps) / (VALUE[case.dtype] * largest),
        "entropy": gap("entropy", scores.entropy) / (VALUE[case.dtype] * largest),
        "log_sum_sq_probs": gap("log_sum_sq_probs", scores.log_squares) / (VALUE[case.dtype] * largest),
        "mean_logits": gap("mean_logits", scores.mean_logit) / (MEAN[case.dtype] * largest),
        "is_top1": float("inf") if bool(wrong.any()) else 0.0,
        "gradient": gap("gradient", gradient) / (GRADIENT[case.dtype] * float(theirs("gradient").abs().max())),
    }


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_statistic_and_the_gradient_are_the_kernels(case: Case, kernel: dict[str, Tensor]) -> None:
    found = off(kernel, case, inputs_of(case), case.softcap)
    assert max(found.values()) < 1, found
    assert kernel[f"{case}/is_top1"].bool().any()
    assert not kernel[f"{case}/is_top1"].bool().all()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    ("fault", "seen_by"),
    [
        ("targets of the next row", {"logps", "is_top1", "gradient"}),
        ("a weight that is 2 % too large", {"logps", "entropy", "log_sum_sq_probs", "mean_logits", "gradient"}),
        ("another soft-cap", {"logps", "entropy", "log_sum_sq_probs", "gradient"}),
    ],
)
def test_the_comparison_would_see(fault: str, seen_by: set[str], case: Case, kernel: dict[str, Tensor]) -> None:
    given, softcap = inputs_of(case), case.softcap
    if fault == "another soft-cap":
        softcap = 8.0 if softcap is None else None
    elif fault == "targets of the next row":
        given = replace(given, targets=given.targets.roll(1))
    else:
        given = replace(given, weight=given.weight * 1.02)
    found = off(kernel, case, given, softcap)
    assert {name for name, value in found.items() if value > 1} >= seen_by, found
