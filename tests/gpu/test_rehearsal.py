"""The functions that the tests on a GPU call, at a tiny size on the CPU, so that they are known to run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpu import answers
from gpu.bases import (
    TOY,
    Settings,
    config_of,
    mistral,
    random_model,
    sizes_of,
    token_pairs,
    write_base,
    write_pairs,
)
from gpu.beside import PEERS, in_turns
from gpu.caps import auto_under_caps, difference
from gpu.equality import beside_trl
from gpu.ladder import ladder, refuse_above
from gpu.loading import load_nf4
from gpu.memory import host_peak
from gpu.planner import beside_plan
from gpu.precision import walk
from gpu.results import Results, card_name
from gpu.resumed import no_cap, resumed_in_little_memory
from gpu.runs import LEAST_MEMORY, configured, export, run, run_outside
from gpu.speed import benchmark, matmul_rate
from gpu.timed import utilization
from gpu.used import counted_passes, faults_in

from benchmarks import models, table, workloads
from benchmarks.stock import own_head_runs
from qdpo.config.resolve import resolve
from qdpo.hardware import Device, find_device
from qdpo.model.lora import attach, lora_layers
from qdpo.planner import calibrate
from qdpo.planner.bare import bare, shape_of
from qdpo.planner.data import lengths_from
from qdpo.planner.lengths import PairLengths, lengths_of
from qdpo.planner.shapes import GEMMA_7B, MISTRAL_7B

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the tests themselves run")

CPU = torch.device("cpu")
SMALL = ("data.max_length=96", "data.max_prompt_length=64", "lora.r=4", "train.learning_rate=1e-3")
BENCHMARKED = mistral(64, 2, 4, 2, 16, 128, 32000)
"""The benchmark's own toy."""

TOY_GEMMA = {
    **{key: value for key, value in TOY.items() if key != "sliding_window"},
    "model_type": "gemma",
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}

toy_of_the_benchmark = partial(models.random_base, "mistral-toy-random", CPU, torch.float32, True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_base(folder, TOY, CPU, torch.float32, shard_bytes=4e6)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    return write_pairs(tmp_path, 96, 4, long_every=8)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of a tiny run's time, and no part of what is rehearsed."""
    monkeypatch.setattr("qdpo.report.plots.draw_plots", lambda folder: None)


@pytest.mark.parametrize("base", [TOY, MISTRAL_7B, GEMMA_7B], ids=["toy", "mistral-7b", "gemma-7b"])
def test_the_bases_have_the_shapes_that_are_planned_for(base: Settings) -> None:
    planned, stored = (
        shape_of(bare(config, "base", "sdpa", torch.bfloat16)) for config in (base, config_of(base).to_dict())
    )
    assert planned == stored == sizes_of(base)


def test_a_run_and_its_exports(base: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    assert len(list(base.glob("model-*.safetensors"))) > 1
    done = run(configured("garrulus-t4", base, data, 6, "model.dtype=auto", *SMALL), tmp_path / "run", CPU)
    assert len(done.losses) == 6
    assert done.loss_fell
    assert {tensor.dtype for tensor in done.adapter.values()} == {torch.float32}
    assert done.as_dict()["engine"] == "packed"
    nearest = ("--rounding", "nearest", "--imatrix", "none")
    for format, options, kept in (
        ("gguf", ("--quant", "q4_k_m", *nearest), False),
        ("gguf", ("--quant", "q4_k_m"), True),
        ("safetensors", (), True),
    ):
        found = export(done.folder, format, *options, pairs=2)
        (artefact,) = found["verdict"]["artefacts"]
        assert all(check["passed"] is not False for check in artefact["checks"])
        assert {"projection", "divergence", "preference", "answers"} <= artefact["measures"].keys()
        # A NF4 base that is rounded once more to the nearest level loses what a few steps have changed.
        assert (found["verdict"]["verdict"], found["exit_code"]) == (("passed", 0) if kept else ("lost", 1))
        assert any(size > 1e6 for size in found["bytes"].values())


@pytest.mark.slow
def test_a_run_in_a_process_of_its_own(base: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    done = run_outside(configured("garrulus-a40", base, data, 2, *SMALL), tmp_path / "run")
    assert done.record["state"] == "finished"
    assert len(done.losses) == 2


def test_types_are_seen(base: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    done, seen = walk(base, data, tmp_path / "run", CPU, "float32", *SMALL)
    assert done.record["dtype"]["compute"] == "float32"
    assert seen["float32"] > 1000
    assert seen["float16"] == 2 * 4, "moments are stored in it: of two layers, at four places"
    assert "bfloat16" not in seen


def test_the_ladder(base: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    found = ladder(base, data, tmp_path, CPU, refuse_above(300), (600, 200), 2, *SMALL)
    assert found["halved"]
    assert found["difference"] < 1e-5


def test_fused_calls_are_those_of_layers_and_passes(base: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    settings = ("packing.tokens_per_micro_batch=200", "packing.checkpoint_layers=1", *SMALL)
    with counted_passes() as passes:
        record = run(configured("garrulus-a40", base, data, 2, *settings), tmp_path / "run", CPU).record
    assert len(passes) == 2
    assert min(passes) > 1
    assert faults_in(record, TOY, passes[0]) == []
    # what would be wrong is seen: a pass more, a layer left out, another type
    assert "fused calls" in faults_in(record, TOY, passes[0] + 1)[0]
    used = {**record["engine"]["used"], "plain": {"lora": 1}}
    assert "outside" in faults_in({**record, "engine": {**record["engine"], "used": used}}, TOY, passes[0])[0]
    assert "products" in faults_in({**record, "dtype": {"compute": "float16"}}, TOY, passes[0])[0]


def test_free_memory_changes_nothing(base: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    found = auto_under_caps(base, data, tmp_path, CPU, (1,), 4, *SMALL, skip=1)
    assert found.keys() == {"least", "again", "auto in 1 GiB"}
    assert len(set(found["least"]["losses"])) == 3  # the first two steps are those of the base
    assert found["least"]["recomputed_layers"] == 2
    assert found["auto in 1 GiB"]["recomputed_layers"] == 0
    for name in ("again", "auto in 1 GiB"):
        # a CPU sums in the same order every time
        assert found[name]["loss_difference"] == found[name]["adapter_difference"] == 0
        assert found[name]["seconds_of_steps"] > 0


def test_runs_that_differ_are_seen_to() -> None:
    def ran(*losses: float, weight: float) -> Any:
        return SimpleNamespace(losses=list(losses), adapter={"a": torch.full((3, 3), weight), "b": torch.ones(3)})

    one = ran(0.69, 0.6, weight=1.0)
    assert difference(one, one) == {"loss_difference": 0, "adapter_difference": 0}
    other = difference(one, ran(0.69, 0.63, weight=1.5))
    assert other["loss_difference"] == pytest.approx(0.05)
    # three quarters of the weights are off by a half
    assert other["adapter_difference"] == pytest.approx(0.75**0.5 / 2)


def test_answers_beside_their_estimate() -> None:
    small = ("samples.count=2", "samples.max_new_tokens=4", "model.dtype=float32", *SMALL)
    found = answers.beside_estimate(resolve("garrulus-a40", small).config, TOY, find_device())
    assert found["answer_tokens"] == [4, 4]
    assert found["at_once"] == 2
    assert found["tokens_per_second"] == 8 / found["seconds"]
    assert found["first_seconds"] > 0
    assert found["first_seconds_estimated"] > found["seconds_estimated"] > 0
    assert found["peak_bytes"] == pytest.approx(found["peak_bytes_estimated"], rel=0.15)


def test_a_resumed_run_is_compared(base: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    found = resumed_in_little_memory(base, data, tmp_path, CPU, no_cap, 4, *SMALL)
    assert found["state_bytes"] > 0
    assert len(found["resumed"]["losses"]) == 4
    for name in ("again", "resumed"):
        assert found[name]["loss_difference"] == found[name]["adapter_difference"] == 0
    # small tensors are in no page, and neither is anything on a CPU
    paged, moments = found["resumed"]["paged"]
    assert paged == 0
    assert moments == 28


def test_the_share_of_matrix_products(base: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    resolved = configured("garrulus-t4", base, data, 4, "model.dtype=auto", *LEAST_MEMORY, *SMALL)
    done = run(resolved, tmp_path / "run", CPU)
    found = utilization(done, resolved.config, TOY, 1e12, skip=1)
    assert found["steps"] == 3
    assert found["tokens_of_all_steps"] == done.record["result"]["tokens"]
    assert found["tokens_per_second"] > found["packed_tokens_per_second"] > 0
    # forward and the activations' gradient; a second forward where layers are computed twice
    assert found["hfu"] / found["mfu"] == pytest.approx(1.4, abs=0.1)
    floor = 4 * sizes_of(TOY).linear * found["packed_tokens_per_second"] * found["seconds_per_step"]
    assert floor < found["flops_per_step"] < 2 * floor
    assert found["mfu"] == pytest.approx(found["flops_per_step"] / found["seconds_per_step"] / 1e12)


def test_runs_in_turns(base: Path, data: tuple[Path, Path], tmp_path: Path) -> None:
    here = partial(run, device=CPU)
    sides = {"packed": (), **(PEERS["TRL"] if own_head_runs(CPU) else {"packed again": ()})}
    found = in_turns(base, data, tmp_path, sides, here, 1, 3, *SMALL, skip=1)
    assert found.keys() == sides.keys()
    assert len({side["tokens"] for side in found.values()}) == 1
    for side in found.values():
        assert len(side["turns"]) == 1
        assert side["tokens_per_second"] > 0
        assert side["losses"] == pytest.approx(found["packed"]["losses"], abs=1e-4)


@pytest.mark.parametrize("half", [None, "bf16"])
def test_equality_with_trl(half: str | None) -> None:
    found = beside_trl(TOY, CPU, half, workloads.synthetic("W3", 4, vocabulary=TOY["vocab_size"]), 256)
    assert found["head"] == "benchmarks.stock"
    assert found["loss_difference"] < (1e-5 if half is None else 2e-2)
    assert found["gradient_difference"] < (1e-4 if half is None else 0.1)
    assert found["padding_gradient_difference"] < 0.1


def test_both_sides_are_compared_in_mixed_precision() -> None:
    products = beside_trl(TOY, CPU, "bf16", workloads.synthetic("W3", 4, vocabulary=TOY["vocab_size"]), 256)["products"]
    for name, seen in products.items():
        # the gradient of the stand-in head is the only product in fp32
        assert seen["bfloat16"] > 100, name
        assert seen.get("float32", 0) <= (0 if name == "packed" else 4), (name, seen)


@pytest.mark.parametrize("make", [partial(random_model, TOY, CPU, torch.float32, "nf4", True), toy_of_the_benchmark])
def test_adapters_on_a_4_bit_base_are_those_of_a_run(make: Callable[[], Any]) -> None:
    from peft.tuners.lora import Linear4bit

    config = resolve("garrulus-a40").config
    policy = attach(make(), config.lora, config.train.seed)
    layers = lora_layers(policy)
    assert len(layers) == 14
    assert {type(layer) for layer in layers.values()} == {Linear4bit}


def test_the_planners_step_is_made_in_the_precision_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Device("cuda", "pretended", (8, 0), 0)
    mixed: Any = calibrate.mixed_precision(card, torch.bfloat16)
    assert (mixed.func, *mixed.args) == (torch.autocast, "cuda", torch.bfloat16)
    on_cpu = partial(torch.autocast, "cpu", torch.bfloat16)
    monkeypatch.setattr(calibrate, "mixed_precision", lambda device, dtype: on_cpu)
    config = resolve("garrulus-a40").config
    policy = attach(random_model(TOY, CPU, torch.bfloat16, "nf4", True), config.lora, config.train.seed)
    # built where it is rehearsed, not where it pretends to be
    monkeypatch.setattr(Device, "torch", CPU)
    engine = calibrate.make_step(policy, torch.bfloat16, card, config, []).engine
    with engine.autocast():
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16


@pytest.mark.parametrize("preset", ["garrulus-a40", "zephyr-7b-gemma"])
def test_the_planner(preset: str) -> None:
    config = resolve(preset, [*SMALL, "packing.tokens_per_micro_batch=512", "model.dtype=float32"]).config
    base = TOY if preset == "garrulus-a40" else TOY_GEMMA
    pairs = token_pairs([PairLengths(64, 32, 32)] * 8, base["vocab_size"])
    assert lengths_of(pairs) == [PairLengths(64, 32, 32)] * 8
    found = beside_plan(config, base, lengths_from(config, pairs, pairs[:4]), find_device())
    for part in ("loaded", "step", "scoring", "peak"):
        assert abs(found[part]["error"]) < 0.1, (part, found[part])


def test_loading(base: Path) -> None:
    found = load_nf4(base, find_device(), compared=1)
    assert found["layers_in_4_bits"] == 14
    assert 0 < found["rounding_error"] < 0.12
    assert found["export_difference"] == 0.0
    assert found["tensor_bytes"] == pytest.approx(found["tensor_bytes_planned"], rel=0.01)


def test_host_memory_is_watched() -> None:
    with host_peak() as level:
        held, deadline = [torch.ones(20_000_000)], time.monotonic() + 60
        while level.peak < 60_000_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        held.clear()
    assert 60_000_000 < level.peak < 200_000_000


def test_the_benchmark(tmp_path: Path) -> None:
    rate = matmul_rate(CPU, torch.float32, 256, rounds=2)
    assert rate > 1e8
    options = ("--base", "mistral-toy-random", "--workloads", "W3", "--pairs", "2", "--rounds", "1")
    found = benchmark(tmp_path / "engine.json", BENCHMARKED, CPU, rate, *options)
    variants = found["workloads"]["W3"]["variants"]
    variant = variants["packed cached"]
    assert variant["real_tokens_per_second"] > 0
    assert 0 < variant["share_of_matmul_rate"] < 1
    assert [variants[name]["is_stock"] for name in ("TRL, stand-in head", "packed")] == [True, False]
    assert variants["packed"]["gradient_difference"] < 1e-4
    assert variants["packed"]["against"]["TRL, stand-in head"].keys() == {"cpu", "wall", "peak_ratio"}
    assert ("TRL" in variants) == own_head_runs(CPU)
    assert ("TRL" in found["not_run"]) != own_head_runs(CPU)
    for text in (table.summary([found]), table.details([found])):
        assert "| W3, NF4, rows of 300 |" in text
        assert "Not run: unsloth" in text


def test_results_say_what_was_measured_and_how_tests_ended(tmp_path: Path) -> None:
    results = Results()
    results.add("topic", {"bytes": 1})
    for when, outcome in (("setup", "passed"), ("call", "passed"), ("teardown", "failed")):
        results.note("one", when, outcome, 0.5)
    results.note("two", "setup", "skipped", 0.0)
    results.note("three", "call", "failed", 1.0)
    assert {name: entry["outcome"] for name, entry in results.tests.items()} == {
        "one": "failed in teardown", "two": "skipped", "three": "failed",
    }  # fmt: skip
    assert results.tests["one"]["seconds"] == 1.5
    results.write(tmp_path / "folder" / f"gpu-{card_name()}.json")
    (path,) = (tmp_path / "folder").iterdir()
    record = json.loads(path.read_text())
    assert record["measured"] == {"topic": {"bytes": 1}}
    assert record["card"]["name"] == find_device().name
    assert record["versions"].keys() >= {"qdpo", "torch", "bitsandbytes"}
