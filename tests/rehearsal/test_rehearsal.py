"""`qdpo train` on cards that do not exist: what it would launch, hold and wait for, on every kind of card.

The rehearsal knows devices, types and shapes, and no values: it shows which functions run, in which types, what stays
in memory and where the host waits. It does not show times, the optimizer's paging, workspaces or fragments.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rehearsal import guard

from qdpo.config.resolve import resolve
from qdpo.planner.cards import CARDS
from qdpo.planner.data import Lengths
from qdpo.planner.estimate import estimate_for
from qdpo.planner.find import Base, find_base
from qdpo.planner.lengths import PairLengths
from qdpo.planner.settings import with_changes

ROOT = Path(__file__).resolve().parents[2]

WAITS = 3
"""Times that the host may wait for the card in a micro-batch."""

FOR_EVERY_WEIGHT = 4 + 8
"""Bytes that a step leaves for each trained weight: gradient and both moments."""


@dataclass(frozen=True)
class Case:
    """What is rehearsed.

    Attributes:
        card: a key of `rehearsal.card.CARDS`.
        preset: what is trained.
        compute: the type that its passes compute in there.
        options: of `rehearsal.play`.
    """

    card: str
    preset: str
    compute: str
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "-".join((self.card, self.preset, *(option.strip("-") for option in self.options)))


FEW = "--set=train.pairs_per_step=4"
"""Pairs of a step whose every pair is a micro-batch of its own."""

RECOMPUTED = ("--set=packing.checkpoint_layers=1", "--set=packing.keep_dequantized=0")

CASES = [
    Case("t4", "garrulus-t4", "float16", ("--long", FEW, *RECOMPUTED)),
    Case("a100", "zephyr-7b-gemma", "bfloat16", ("--kernel=varlen",)),
    Case("a40", "garrulus-a40", "bfloat16", RECOMPUTED),
    Case("rtx4090", "zephyr-7b-qlora", "bfloat16", ("--long", FEW)),
    Case("h200", "garrulus-a40", "bfloat16", ("--kernel=varlen", "--long", FEW)),
    Case("rtx5090", "neuralhermes-7b", "bfloat16", ("--set=model.dtype=float16",)),
]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled device guard."""
    if guard.compiler() is None:
        pytest.skip("no C++ compiler (c++, or $CXX): the path of a GPU is not rehearsed")
    try:
        return guard.build(tmp_path_factory.mktemp("guard"))
    except subprocess.CalledProcessError as error:
        pytest.fail(f"the device guard does not compile:\n{error.stderr[-3000:]}")


@functools.cache
def rehearse(library: Path, case: Case, layers: int | None, *more: str) -> dict[str, Any]:
    """What `rehearsal.play` has seen, in a process of its own."""
    command = [sys.executable, "-m", "rehearsal.play", str(library), "--card", case.card, "--preset", case.preset]
    command += [*(["--layers", str(layers)] if layers else []), *case.options, *more]
    places = [part for part in (str(ROOT / "tests"), os.environ.get("PYTHONPATH")) if part]
    # an installed qdpo comes first, as in all other tests
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*places, str(ROOT)]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


def faults_in(seen: dict[str, Any], case: Case, layers: int) -> list[str]:
    """What a run on this card would do wrong."""
    record, phases = seen["record"], seen["phases"]
    if record["failure"]:
        return [f"the run fails: {record['failure']}"]
    found = []
    compute = "float16" if "--set=model.dtype=float16" in case.options else case.compute
    for name, phase in phases.items():
        odd = [kind for kind in phase["products"] if kind.startswith("layers") and kind != f"layers: {compute}"]
        found += [f"{name}: products in {', '.join(odd)}"] * bool(odd)
    step = phases["step"]
    passes = step["calls"].get("FusedMlp backward", 0) / layers
    for kind, per_layer in (("FusedLora", 4), ("FusedMlp", 1)):
        for way in ("forward", "backward"):
            calls = step["calls"].get(f"{kind} {way}", 0)
            if calls < per_layer * layers * step["times"]:
                found.append(f"step: {calls} calls of {kind} {way} in {step['times']} steps of {layers} layers")
    if record["engine"]["used"]["plain"]:
        found.append(f"step: adapters outside of their fused functions: {record['engine']['used']['plain']}")
    for name in ("step", "reference", "evaluation"):
        if inside := phases[name]["inside"]:
            found.append(f"{name}: the host waits inside the layers: {inside}")
    if sum(step["waits"].values()) > WAITS * passes:
        found.append(f"step: the host waits {sum(step['waits'].values())} times in {passes:g} micro-batches")
    wrong = {"bfloat16", "float16"} - {compute}
    if wrong & set(seen["dtypes"]):
        found.append(f"{', '.join(wrong & set(seen['dtypes']))} on this card")
    left = step["end"] - step["start"] - FOR_EVERY_WEIGHT * record["adapter"]["trainable_parameters"]
    if left > 1 << 20:
        found.append(f"step: {left:,} bytes are left over")
    if dequantized := phases["answers"]["launches"].get("dequantize_4bit", 0):
        found.append(f"answers: {dequantized} weights are dequantized to write a few tokens")
    if not any("parameters in fp32" in check["detail"] for check in record["checks"]):
        found.append("the adapters are not fp32")
    return found


PLANNED = 0.02
"""What the plan may be off by, relative to the rehearsal."""


def off_plan(seen: dict[str, Any], case: Case, layers: int, base: dict[str, Any] | None = None) -> list[str]:
    """Phases whose peak the plan misses."""
    record = seen["record"]
    settings = [option.removeprefix("--set=") for option in case.options if option.startswith("--set=")]
    config = resolve(
        case.preset, ["samples.count=1", "samples.max_new_tokens=8", "train.max_steps=2", *settings]
    ).config
    known = {**(base or find_base(config.model.name).config), "num_hidden_layers": layers}
    engine = record["engine"]
    numbers = {"checkpoint_layers": engine["checkpointed_layers"], "keep_dequantized": engine["kept_layers"]}
    config = with_changes(with_changes(config, "packing", **numbers), "train", optim=record["optimizer"]["name"])
    train, heldout = ([PairLengths(*pair) for pair in seen["lengths"][part]] for part in ("train", "heldout"))
    longest = max(train, key=lambda pair: pair.packed)
    lengths = Lengths(train, heldout, len(train), len(heldout), True, "rehearsed", longest)
    found = estimate_for(config, Base("base", known, "rehearsed"), CARDS[case.card], lengths, engine["kernel"]).phases
    planned = {
        "reference": found["reference"],
        "evaluation": found["evaluation"],
        "answers": found["samples"],
        "step": max(found[phase] for phase in ("forward", "backward", "step")),
    }
    off = {name: size / seen["phases"][name]["peak"] - 1 for name, size in planned.items()}
    print("  plan: " + ", ".join(f"{name} {error:+.2%}" for name, error in off.items()))
    return [f"{name} {error:+.1%}" for name, error in off.items() if abs(error) > PLANNED]


def say(case: Case, seen: dict[str, Any]) -> None:
    """Print what each phase would ask of the card."""
    print(f"\n{case}\n{'phase':12}{'times':>6}{'launches':>10}{'GB moved':>10}{'TFLOP':>8}{'peak GiB':>10}{'waits':>7}")
    for name, phase in seen["phases"].items():
        print(
            f"{name:12}{phase['times']:6}{sum(phase['launches'].values()):10,}{phase['moved'] / 1e9:10.1f}"
            f"{phase['flops'] / 1e12:8.2f}{phase['peak'] / 2**30:10.3f}{sum(phase['waits'].values()):7}"
        )
    print("  at the step's peak:")
    for line, size in sorted(seen["phases"]["step"]["sites"].items(), key=lambda item: -item[1])[:5]:
        print(f"  {size / 2**30:8.3f} GiB {line}")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_run_is_right_on_every_kind_of_card(case: Case, library: Path) -> None:
    seen = rehearse(library, case, 2, "--sites")
    say(case, seen)
    assert faults_in(seen, case, 2) == []
    assert off_plan(seen, case, 2) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASES[2], CASES[1]], ids=str)
def test_a_run_is_right_with_all_layers(case: Case, library: Path) -> None:
    seen = rehearse(library, case, None, "--sites")
    say(case, seen)
    assert faults_in(seen, case, {"garrulus-a40": 32, "zephyr-7b-gemma": 28}[case.preset]) == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no_autocast", "not all of them ran so in the first step"),
        ("unknown_argument", "unexpected keyword argument 'enable_gqa'"),
        ("dequantized_answers", "weights are dequantized to write a few tokens"),
        ("waiting", "the host waits"),
    ],
)
def test_a_fault_is_seen(fault: str, words: str, library: Path) -> None:
    case = CASES[2]
    found = faults_in(rehearse(library, case, 2, "--fault", fault), case, 2)
    assert found, "nothing was seen"
    assert any(words in line for line in found), found


FAMILIES = {
    "qwen3": {"model_type": "qwen3", "hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 8}
    | {"head_dim": 128, "intermediate_size": 6144, "vocab_size": 151936, "tie_word_embeddings": True},
    "gemma2": {"model_type": "gemma2", "hidden_size": 2304, "num_attention_heads": 8, "num_key_value_heads": 4}
    | {"head_dim": 256, "intermediate_size": 9216, "vocab_size": 256000, "sliding_window": 512},
    "llama": {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    | {"intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4}
    | {"intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False},
}
LAYERS = 6
SHORT = ("--set=packing.keep_dequantized=0", "--set=packing.checkpoint_layers=5")
FORMS = [
    ("qwen3", "a40", (*SHORT, "--long", FEW)),
    ("gemma2", "a40", (*SHORT, "--long", FEW)),
    ("llama", "h200", ("--kernel=varlen", "--set=lora.r=128", "--set=packing.checkpoint_layers=0", "--long", FEW)),
    ("qwen2", "t4", (*SHORT, "--set=lora.r=8", "--set=model.dtype=float16")),
    ("llama", "a100", ("--set=packing.checkpoint_layers=2", "--set=packing.keep_dequantized=0", "--long")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "card", "options"), FORMS, ids=lambda value: str(value)[:20])
def test_the_plan_of_every_family_is_what_a_run_asks_for(
    family: str, card: str, options: tuple[str, ...], library: Path
) -> None:
    case = Case(card, "garrulus-a40", "", options)
    base = FAMILIES[family]
    seen = rehearse(library, case, LAYERS, "--base", json.dumps(base))
    say(case, seen)
    assert off_plan(seen, case, LAYERS, base) == []


def test_free_memory_is_used(library: Path) -> None:
    case = Case("a40", "garrulus-a40", "bfloat16")
    engine = rehearse(library, case, 2)["record"]["engine"]
    assert (engine["checkpointed_layers"], engine["kept_layers"]) == (0, 2)


def test_where_memory_is_short_layers_are_computed_twice_and_it_holds(library: Path) -> None:
    case = Case("t4", "garrulus-t4", "float16", ("--long", FEW, "--memory=2.1"))
    seen = rehearse(library, case, 4)
    assert seen["record"]["failure"] is None
    engine = seen["record"]["engine"]
    assert 0 < engine["checkpointed_layers"] <= 3
    assert engine["kept_layers"] == 0
    assert seen["phases"]["step"]["peak"] <= 2.1 * 2**30
