"""Rounding with feedback keeps a small trained change where rounding to the nearest level loses it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from export import families, toys
from gguf import GGMLQuantizationType as Type

from qdpo.errors import InputMissingError
from qdpo.export.awq import levels
from qdpo.export.awq.packing import Quantised
from qdpo.export.feedback import Feedback, feedback_of, round_columns, round_floats
from qdpo.export.formats import FORMATS, Request, Way, targets_of
from qdpo.export.gguf.encode import decode, encode
from qdpo.export.gguf.fits import fit
from qdpo.export.gguf.rounding import round_with_feedback
from qdpo.export.moments import calibration_texts, moments_of_run, take_moments
from qdpo.export.source import load_run
from qdpo.export.verify.awq_target import AwqWeights
from qdpo.export.verify.projection import Projection
from qdpo.model.adapter import Adapter
from qdpo.model.moments import MOMENTS, Moment, moment_of

ROWS, COLUMNS, RANK = 2304, 512, 8


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def layer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Moment]:
    """An NF4 base, a change of 2e-3 of its size, A, and the moment of inputs that have a few strong directions."""
    torch.manual_seed(0)
    weight = 0.02 * torch.randn(ROWS, COLUMNS)
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    base = functional.dequantize_4bit(packed, state).float()
    a = torch.randn(RANK, COLUMNS) / COLUMNS**0.5
    change = torch.randn(ROWS, RANK) @ a
    change *= 2e-3 * base.norm() / change.norm()
    inputs = torch.randn(2000, 24) @ torch.randn(24, COLUMNS) + torch.randn(2000, COLUMNS)
    return base, change, a, moment_of(inputs, a, 64)


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q4_K, Type.Q5_0, Type.Q3_K, Type.IQ4_NL], ids=lambda kind: kind.name)
def test_a_small_change_of_an_nf4_base_survives_feedback_and_not_the_nearest_level(
    layer: tuple[torch.Tensor, torch.Tensor, torch.Tensor, Moment], kind: Type
) -> None:
    base, change, a, moment = layer
    feedback = feedback_of(moment, a)
    shape = tuple(base.shape)

    def kept(way: Way) -> tuple[float, float]:
        def rounded(weight: torch.Tensor) -> torch.Tensor:
            if way == "nearest":
                return decode(encode("w", weight, kind), kind, shape)
            return decode(round_with_feedback(weight, kind, moment.diagonal, feedback).numpy(), kind, shape)

        moved = rounded(base + change)
        error = moved - base - change
        share = moment.inner(moved - rounded(base), change) / moment.inner(change, change)
        return share, moment.inner(error, error) ** 0.5

    nearest, with_feedback = kept("nearest"), kept("feedback")
    assert abs(with_feedback[0] - 1) < 0.2
    assert abs(nearest[0] - 1) > 1.5 * abs(with_feedback[0] - 1)
    assert with_feedback[1] < 0.75 * nearest[1], "what the layer gives is nearer too"


def test_so_it_does_in_what_awq_has_scaled(
    layer: tuple[torch.Tensor, torch.Tensor, torch.Tensor, Moment],
) -> None:
    """Its columns are multiplied by factors, and what it is given is divided by them."""
    base, change, a, moment = layer
    columns = torch.rand(COLUMNS, generator=torch.Generator().manual_seed(1)) + 0.5
    there, importance = moment.scaled(1 / columns), moment.scaled(1 / columns).diagonal
    alone = Moment(there.rest, torch.zeros(COLUMNS, 1))

    def kept(feedback: Feedback) -> tuple[float, float]:
        def rounded(weight: torch.Tensor) -> torch.Tensor:
            layer = levels.round_with_feedback("w", weight * columns, 64, torch.bfloat16, importance, feedback)
            assert torch.equal(layer.scales, layer.scales.bfloat16().float()), "levels are for the scales of the file"
            return layer.dequantised() / columns

        moved = rounded(base + change)
        error = moved - base - change
        share = moment.inner(moved - rounded(base), change) / moment.inner(change, change)
        return share, moment.inner(error, error) ** 0.5

    nearest, with_feedback = kept(feedback_of(alone)), kept(feedback_of(there, a * columns))
    assert with_feedback[0] == pytest.approx(1, abs=0.1)
    assert with_feedback[1] < 0.5 * nearest[1]
    other_way = kept(feedback_of(moment.scaled(columns), a / columns))
    assert other_way[1] > 1.2 * with_feedback[1], "the inputs are divided, not multiplied"


def test_groups_are_fitted_to_the_columns_that_matter() -> None:
    torch.manual_seed(0)
    weight, importance = torch.randn(24, 128), torch.rand(128).pow(8) + 1e-3

    def error(scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
        grouped, scale, zero = weight.view(24, 2, 64), scales.unsqueeze(2), zeros.unsqueeze(2)
        found = ((grouped / scale + zero).round().clamp(0, 15) - zero) * scale
        return (importance * (found.view(24, 128) - weight).square()).sum()

    scales, zeros = levels.fit_groups(weight, 64, importance)
    assert ((zeros >= 0) & (zeros <= 15) & (zeros == zeros.round())).all()
    low, high = weight.view(24, 2, 64).aminmax(dim=2)
    span = (high - low) / 15
    assert error(scales, zeros) < 0.8 * error(span, (-low / span).round())
    nothing = levels.fit_groups(torch.zeros(1, 64), 64, importance[:64])
    assert [part.item() for part in nothing] == [0, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_small_change_of_a_base_in_16_bits_survives_feedback(
    layer: tuple[torch.Tensor, torch.Tensor, torch.Tensor, Moment], dtype: torch.dtype
) -> None:
    """The base stands on the grid; most of a change that is smaller than its steps is rounded away."""
    base, change, a, moment = layer
    base, change = base.to(torch.bfloat16).float(), change / 4
    feedback = feedback_of(moment, a)
    size = moment.inner(change, change)
    nearest = moment.inner((base + change).to(dtype).float() - base, change) / size
    with_feedback = moment.inner(round_floats(base + change, feedback, dtype).float() - base, change) / size
    assert with_feedback == pytest.approx(1, abs=0.05)
    assert 1 - nearest > 10 * abs(1 - with_feedback)


def test_the_factors_are_those_of_the_whole_matrix(
    layer: tuple[torch.Tensor, torch.Tensor, torch.Tensor, Moment],
) -> None:
    """U of H = U D U^T, made of the low rank block by block, beside a Cholesky factor of H itself."""
    moment = layer[3]
    damped = moment.rest.double() + 0.03 * moment.diagonal.double().mean()
    whole = torch.diag(damped) + moment.factor.double() @ moment.factor.double().T
    found = feedback_of(moment, damping=0.03)
    sizes = moment.diagonal[found.order]
    assert (sizes[1:] <= sizes[:-1]).all(), "the columns with the largest inputs first"
    whole = whole[found.order][:, found.order]
    lower = torch.linalg.cholesky(whole.flip(0, 1)).flip(0, 1)
    expected = lower / lower.diagonal()
    made = torch.triu(found.given.double() @ found.taken.double().T, 1) + torch.eye(COLUMNS, dtype=torch.float64)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)


def test_columns_that_have_nothing_in_common_are_rounded_each_to_its_nearest_level(
    layer: tuple[torch.Tensor, torch.Tensor, torch.Tensor, Moment],
) -> None:
    base = layer[0]
    alone = feedback_of(Moment(torch.rand(COLUMNS) + 0.5, torch.zeros(COLUMNS, 1)))
    grid = fit(base, Type.Q4_K, device=torch.device("cpu"))
    assert torch.equal(round_columns(base, alone, grid.by_column().round), grid.levels(base))


def test_the_columns_with_the_largest_inputs_are_rounded_first(
    layer: tuple[torch.Tensor, torch.Tensor, torch.Tensor, Moment],
) -> None:
    base, _, _, moment = layer
    grid = fit(base, Type.Q4_K, moment.diagonal, torch.device("cpu"))

    def error(feedback: Feedback) -> float:
        found = grid.values(round_columns(base, feedback, grid.by_column().round)) - base
        return moment.inner(found, found) ** 0.5

    def in_order(order: torch.Tensor) -> Feedback:
        damped = torch.diag(moment.rest + 0.03 * moment.diagonal.mean()) + moment.factor @ moment.factor.T
        lower = torch.linalg.cholesky(damped[order][:, order].double().flip(0, 1)).flip(0, 1)
        return Feedback(order, torch.eye(COLUMNS), (lower / lower.diagonal()).T.float())

    found = error(feedback_of(moment))
    assert found == pytest.approx(error(in_order(moment.diagonal.argsort(descending=True))), rel=0.01)
    assert found < 0.95 * error(in_order(torch.arange(COLUMNS)))
    assert found < 0.9 * error(in_order(moment.diagonal.argsort()))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with data, on a base wide enough for K-quants, with the moments of its inputs."""
    folder = tmp_path_factory.mktemp("rounding")
    config = families.config("llama", hidden_size=256, intermediate_size=512, num_hidden_layers=2)
    base = toys.save_base(folder / "base", config)
    run = toys.add_data(toys.save_run(folder / "run", base, toys.add_adapter(toys.load_4bit(base), size=0.004)), base)
    take_moments(load_run(run, as_trained=True), 1500)
    return run


def test_moments_are_those_of_what_the_trained_model_computes(run: Path) -> None:
    found = load_run(run)
    moments = moments_of_run(found)
    assert moments is not None
    texts = calibration_texts(found, 1500)
    assert moments.about.tokens == sum(map(len, texts))
    from qdpo.export.whole import merged_model

    whole = merged_model(found.merged("trained"))
    heard: dict[str, list[torch.Tensor]] = {}
    for name in ("self_attn.k_proj", "mlp.down_proj"):
        module = whole.get_submodule(f"model.layers.1.{name}")
        module.register_forward_pre_hook(lambda _, args, name=name: heard.setdefault(name, []).append(args[0][0]))
    with torch.no_grad():
        for ids in texts:
            whole(torch.tensor([ids]))
    for name, inputs in heard.items():
        moment = moments.of(f"model.layers.1.{name}.weight")
        assert moment is not None
        expected = torch.cat(inputs).square().mean(0)
        torch.testing.assert_close(moment.diagonal, expected, rtol=5e-3, atol=1e-4 * float(expected.max()))
    assert len(moments.names) == 14, "seven in each of two layers; embedding and head are left alone"


def kept(run: Path, out: Path, way: Way | None, format: str = "gguf", **options: object) -> dict[str, Any]:
    """The projection of an export's change on the adapter's, as `qdpo verify` finds it."""
    export = FORMATS[format].write(Request(load_run(run), out / "out", rounding=way, **options))
    found = load_run(run)
    (target,) = targets_of(export, json.loads((export / "export.json").read_text()), found)
    (out / "scratch").mkdir()
    projection = Projection(moments_of_run(found))
    for check in target.read_back(found.merged("trained"), target.twin(out / "scratch"), projection):
        assert check.passed, check
    record = projection.record()
    assert record is not None
    return record


def test_an_export_of_a_run_with_moments_keeps_its_adapter(run: Path, tmp_path: Path) -> None:
    by_default = kept(run, tmp_path / "default", None)
    nearest = kept(run, tmp_path / "nearest", "nearest")
    assert by_default["metric"] == "inputs"
    assert by_default["value"] == pytest.approx(1, abs=0.1)
    assert abs(float(str(nearest["value"])) - 1) > abs(float(str(by_default["value"])) - 1)
    record = json.loads((tmp_path / "default" / "out" / "export.json").read_text())
    assert record["rounding"] == {"way": "feedback", "imatrix": "auto"}


def test_safetensors_in_16_bits_keep_it_too(run: Path, tmp_path: Path) -> None:
    by_default = kept(run, tmp_path / "default", None, "safetensors", dtype="bfloat16")
    nearest = kept(run, tmp_path / "nearest", "nearest", "safetensors", dtype="bfloat16")
    assert by_default["value"] == pytest.approx(1, abs=0.02)
    assert abs(float(str(nearest["value"])) - 1) > abs(float(str(by_default["value"])) - 1)
    record = json.loads((tmp_path / "default" / "out" / "export.json").read_text())
    assert record["rounding"] == {"way": "feedback"}


def test_awq_keeps_it_and_packs_what_was_chosen(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llmcompressor", reason="needs llmcompressor (pip install 'qdpo[awq]')")
    chosen: dict[str, torch.Tensor] = {}
    choose = levels.round_with_feedback

    def listening(name: str, *args: Any) -> Quantised:
        layer = choose(name, *args)
        chosen.setdefault(name, layer.dequantised())  # the bare base's export comes second
        return layer

    monkeypatch.setattr(levels, "round_with_feedback", listening)
    by_default = kept(run, tmp_path, None, "awq")
    assert by_default["value"] == pytest.approx(1, abs=0.05)
    assert by_default["worst"][0]["value"] == pytest.approx(1, abs=0.15), "0.64 at the nearest level"
    found = AwqWeights(tmp_path / "out")
    assert len(chosen) == 14
    for name, weight in chosen.items():
        assert torch.equal(found.read(name), weight), name
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["rounding"] == {"way": "feedback"}


def test_without_moments_the_nearest_level_is_taken_and_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    other = Path(shutil.copytree(run, tmp_path / "run"))
    (other / MOMENTS).unlink()
    FORMATS["gguf"].write(Request(load_run(other), tmp_path / "out", quants=("q4_0",)))
    assert "--rounding feedback takes them first" in capsys.readouterr().err.replace("\n", " ")
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["rounding"] == {"way": "nearest", "imatrix": "none"}
    FORMATS["gguf"].write(Request(load_run(other), tmp_path / "half", quants=("f16",)))
    assert "--rounding" not in capsys.readouterr().err, "sixteen bits have no levels to choose"


def test_moments_of_another_adapter_are_not_taken(run: Path, tmp_path: Path) -> None:
    import shutil

    other = Path(shutil.copytree(run, tmp_path / "run"))
    record = json.loads((other / "run.json").read_text())
    record["result"] = {**(record.get("result") or {}), "adapter_sha256": "0" * 64}
    (other / "run.json").write_text(json.dumps(record))
    assert moments_of_run(load_run(run)) is not None
    assert moments_of_run(load_run(other)) is None


def test_a_matrix_of_another_model_is_refused(run: Path, tmp_path: Path) -> None:
    from qdpo.export.gguf.imatrix import Imatrix, write_imatrix

    write_imatrix(tmp_path / "other.gguf", Imatrix({"blk.0.attn_q.weight": torch.ones(64)}, ["another"]))
    request = Request(load_run(run), tmp_path / "out", quants=("q4_0",), imatrix=str(tmp_path / "other.gguf"))
    with pytest.raises(InputMissingError, match="lacks 13 of the model's 14 matrices"):
        FORMATS["gguf"].write(request)
    assert not (tmp_path / "out").exists()
    assert Adapter(load_run(run).adapter).directions("model.norm.weight") is None
