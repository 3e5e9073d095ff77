"""AWQ without llmcompressor: packing in both layouts, planning by shape, finding the moved scales again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from export import families, toys
from safetensors.torch import load_file

from qdpo.errors import InputMissingError, UnavailableError
from qdpo.export.awq import quantize
from qdpo.export.awq.format import planned_tensors, write_awq, write_layers
from qdpo.export.awq.packing import (
    COUNTED,
    INTERLEAVED,
    Quantised,
    from_autoawq,
    from_compressed,
    pack,
    to_autoawq,
    unpack,
)
from qdpo.export.awq.plan import Plan, plan_layers
from qdpo.export.folder import write_companions
from qdpo.export.formats import Layout, Request
from qdpo.export.source import load_run
from qdpo.export.verify.awq_target import AwqTarget, AwqWeights
from qdpo.export.verify.projection import Projection, read_both
from qdpo.export.verify.readback import Expected, compare_smoothed
from qdpo.files import write_json
from qdpo.model.merged import MergedModel
from qdpo.model.tensors import INDEX, PlannedTensor, TensorFiles, write_folder

CONFIG = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}


def round_to_nearest(weight: torch.Tensor, group: int) -> Quantised:
    """Asymmetric 4 bits without calibration."""
    grouped = weight.reshape(weight.shape[0], -1, group)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).clamp(min=1e-8)
    zeros = (-low / scales).round().clamp(0, 15)
    codes = (grouped / scales.unsqueeze(-1) + zeros.unsqueeze(-1)).round().clamp(0, 15)
    return Quantised(codes.reshape(weight.shape).to(torch.uint8), zeros.to(torch.uint8), scales)


def compressed_parts(layer: Quantised) -> dict[str, torch.Tensor]:
    return {
        "weight_packed": pack(layer.codes, COUNTED),
        "weight_scale": layer.scales,
        "weight_zero_point": pack(layer.zeros.T, COUNTED).T.contiguous(),
        "weight_shape": torch.tensor(layer.codes.shape),
    }


# --- packing ---------------------------------------------------------------------------------------------------------


def test_nibbles_lie_where_the_layouts_want_them() -> None:
    values = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]], dtype=torch.uint8)
    assert pack(values, COUNTED).item() & 0xFFFFFFFF == 0x87654321
    assert pack(values, INTERLEAVED).item() & 0xFFFFFFFF == 0x86427531
    assert pack(torch.full((1, 8), 15), COUNTED).item() == -1


@pytest.mark.parametrize("order", [COUNTED, INTERLEAVED])
@pytest.mark.parametrize("count", [1, 7, 8, 24, 172])
def test_unpack_is_the_inverse_of_pack(order: tuple[int, ...], count: int) -> None:
    values = torch.randint(0, 16, (5, count), generator=torch.Generator().manual_seed(count)).to(torch.uint8)
    words = pack(values, order)
    assert (words.dtype, words.shape) == (torch.int32, (5, -(-count // 8)))
    assert torch.equal(unpack(words, count, order), values)


@pytest.mark.parametrize(("rows", "columns", "group"), [(24, 64, 32), (20, 128, 64), (256, 256, 128)])
def test_compressed_layout_equals_compressed_tensors_own(rows: int, columns: int, group: int) -> None:
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors (pip install 'qdpo[awq]')")
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
    from compressed_tensors.quantization import preset_name_to_scheme

    layer = round_to_nearest(torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)), group)
    scheme = preset_name_to_scheme("W4A16_ASYM", ["Linear"])
    scheme.weights.group_size = group
    parts = compressed_parts(layer)
    theirs = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
    assert torch.equal(from_compressed(parts).dequantised(), theirs.float())
    again = PackedQuantizationCompressor.compress(
        {
            "weight": theirs,
            "weight_scale": layer.scales,
            "weight_zero_point": layer.zeros.to(torch.int8) - 8,
        },
        scheme,
    )
    assert torch.equal(again["weight_packed"], parts["weight_packed"])
    assert torch.equal(again["weight_zero_point"], parts["weight_zero_point"])


def dequantised_as_autoawq(parts: dict[str, torch.Tensor], group: int) -> torch.Tensor:
    """AutoAWQ's own way: unpack as counted, then put every eight columns into the order 0 4 1 5 2 6 3 7."""
    reverse = [0, 4, 1, 5, 2, 6, 3, 7]

    def columns(words: torch.Tensor) -> torch.Tensor:
        rows = []
        for row in words.tolist():
            values = [(word & 0xFFFFFFFF) >> (4 * i) & 15 for word in row for i in range(8)]
            rows.append([values[8 * (i // 8) + reverse[i % 8]] for i in range(len(values))])
        return torch.tensor(rows, dtype=torch.float32)

    weights, zeros = columns(parts["qweight"]), columns(parts["qzeros"])
    zeros, scales = (t.repeat_interleave(group, 0) for t in (zeros, parts["scales"].float()))
    return ((weights - zeros) * scales).T


def test_autoawq_layout_holds_the_same_weights() -> None:
    layer = round_to_nearest(torch.randn(48, 128, generator=torch.Generator().manual_seed(2)), 32)
    parts = to_autoawq(layer)
    assert {name: (t.dtype, tuple(t.shape)) for name, t in parts.items()} == {
        "qweight": (torch.int32, (128, 6)),
        "qzeros": (torch.int32, (4, 6)),
        "scales": (torch.float16, (4, 48)),
    }
    own = from_autoawq(parts).dequantised()
    assert torch.equal(own, dequantised_as_autoawq(parts, 32))
    in_half = Quantised(layer.codes, layer.zeros, layer.scales.half()).dequantised()
    assert torch.equal(own, in_half), "nothing but the scales' dtype changed"


# --- what becomes 4 bits wide ----------------------------------------------------------------------------------------


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., MergedModel]:
    def build(config: Any) -> MergedModel:
        base = toys.save_base(tmp_path / "base", config)
        return MergedModel(json.loads((base / "config.json").read_text()), TensorFiles.of_folder(base), None, None)

    return build


@pytest.mark.parametrize(("hidden", "inner", "group"), [(256, 512, 128), (256, 320, 64), (64, 96, 32)])
def test_the_group_divides_every_width(make: Callable[..., MergedModel], hidden: int, inner: int, group: int) -> None:
    plan = plan_layers(make(toys.mistral(hidden_size=hidden, intermediate_size=inner)), "compressed-tensors")
    assert plan.group == group
    assert len(plan.layers) == 14
    assert plan.kept == ()


def test_layers_of_odd_width_stay_in_16_bits(
    make: Callable[..., MergedModel], capsys: pytest.CaptureFixture[str]
) -> None:
    model = make(toys.llama(intermediate_size=172))  # as stories260K
    plan = plan_layers(model, "compressed-tensors")
    assert plan.kept == tuple(f"model.layers.{i}.mlp.down_proj" for i in (0, 1))
    assert "2 layers stay in 16 bits" in capsys.readouterr().err
    assert len(plan_layers(model, "autoawq").kept) == 6, "AutoAWQ's words need rows in multiples of eight"
    with pytest.raises(InputMissingError, match="none of the 14 linear layers"):
        plan_layers(make(toys.llama(hidden_size=40, head_dim=10, intermediate_size=172)), "compressed-tensors")


def test_missing_extra_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError) as raised:
        write_awq(Request(None, tmp_path / "out"))  # type: ignore[arg-type]
    assert raised.value.hint == "install it: pip install 'qdpo[awq]'"
    assert not (tmp_path / "out").exists()


# --- writing and reading back ----------------------------------------------------------------------------------------


def export_by_hand(folder: Path, config: Any, layout: Layout, **spoil: Any) -> tuple[AwqTarget, MergedModel]:
    """An AWQ folder from rounding to nearest, with scales moved as AWQ moves them, through llmcompressor-like shards.

    Args:
        folder: where everything goes.
        config: the model's.
        layout: of the export.
        spoil: tensor name -> what is done to it on the way.
    """
    base = toys.save_base(folder / "base", config)
    run = load_run(toys.save_run(folder / "run", base, toys.add_adapter(toys.load_plain(base))))
    model = run.merged("original")
    plan = plan_layers(model, layout)
    tensors = smoothed(model)
    for name, damage in spoil.items():
        tensors[name] = damage(tensors)
    made: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        if layer in plan.layers:
            parts = compressed_parts(round_to_nearest(tensor, plan.group))
            made |= {f"{layer}.{part}": value for part, value in parts.items()}
        else:
            made[name] = tensor
    scratch, out = folder / "scratch", folder / "out"
    scratch.mkdir()
    out.mkdir()
    listed = [PlannedTensor(name, value.dtype, tuple(value.shape)) for name, value in made.items()]
    write_folder(scratch, listed, made.__getitem__, shard_bytes=100_000)
    write_json(scratch / "config.json", {"quantization_config": with_group(plan)})
    write_companions(run, model, out, "float16")
    planned = list(planned_tensors(model, plan, torch.float16))
    write_layers(scratch, out, planned, plan, torch.float16, shard_bytes=100_000)
    write_json(out / "export.json", {"group_size": plan.group, "layers": len(plan.layers)})
    return AwqTarget(out, "awq", run), model


def with_group(plan: Plan) -> dict[str, Any]:
    config = json.loads(json.dumps(CONFIG))
    config["config_groups"]["group_0"]["weights"]["group_size"] = plan.group
    return config


def smoothed(model: MergedModel, seed: int = 3) -> dict[str, torch.Tensor]:
    """The model's tensors with scales moved from norms to what they feed, and from up_proj to down_proj."""
    tensors = {name: model.read(name).clone() for name in model.names}
    chance = torch.Generator().manual_seed(seed)
    plus = 1.0 if "Gemma" in model.config["architectures"][0] else 0.0
    for layer in range(model.config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        for norm, fed in (
            ("input_layernorm", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
            ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"]),
        ):
            scale = 0.5 + torch.rand(model.config["hidden_size"], generator=chance)
            gains = tensors[f"{block}.{norm}.weight"]
            tensors[f"{block}.{norm}.weight"] = (gains + plus) / scale - plus
            for name in fed:
                tensors[f"{block}.{name}.weight"] *= scale
        scale = 0.5 + torch.rand(model.config["intermediate_size"], generator=chance)
        tensors[f"{block}.mlp.up_proj.weight"] /= scale.unsqueeze(1)
        if f"{block}.mlp.up_proj.bias" in tensors:
            tensors[f"{block}.mlp.up_proj.bias"] /= scale
        tensors[f"{block}.mlp.down_proj.weight"] *= scale
    return tensors


@pytest.mark.parametrize("layout", ["compressed-tensors", "autoawq"])
@pytest.mark.parametrize("family", ["mistral", "gemma", "qwen2", "llama-tied-biased"])
def test_sharded_folders_are_read_back(tmp_path: Path, layout: Layout, family: str) -> None:
    target, model = export_by_hand(tmp_path, families.config(family), layout)
    assert (target.path / INDEX).is_file(), "in more than one shard"
    checks = {check.name: check for check in target.read_back(model, None, Projection())}
    assert checks["read-back"].passed, checks["read-back"].detail
    assert checks["settings"].passed, checks["settings"].detail
    stored = json.loads((target.path / "config.json").read_text())["quantization_config"]
    if layout == "autoawq":
        assert stored == {
            "quant_method": "awq",
            "version": "gemm",
            "bits": 4,
            "group_size": 128,
            "zero_point": True,
            "modules_to_not_convert": ["lm_head"],
        }
        files = [load_file(path) for path in target.path.glob("*.safetensors")]
        assert all(t.dtype in (torch.float16, torch.int32) for tensors in files for t in tensors.values())


def test_both_layouts_hold_the_same_model(tmp_path: Path) -> None:
    weights = [
        AwqWeights(export_by_hand(tmp_path / layout, families.config("mistral"), layout)[0].path)
        for layout in ("compressed-tensors", "autoawq")
    ]
    assert weights[0].names == weights[1].names
    for name in weights[0].names:
        assert torch.equal(weights[0].read(name), weights[1].read(name)), name


UP, GATE = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.gate_proj.weight"
NORM, QUERY = "model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (UP, lambda tensors: tensors[GATE]),
        (QUERY, lambda tensors: tensors[QUERY].T.contiguous()),
        (QUERY, lambda tensors: tensors[QUERY].roll(1, 0)),
        (NORM, lambda tensors: tensors[NORM].roll(1, 0)),
        (NORM, lambda tensors: -tensors[NORM]),
        ("model.norm.weight", lambda tensors: tensors["model.norm.weight"] * 1.1),
        ("model.embed_tokens.weight", lambda tensors: tensors["model.embed_tokens.weight"].roll(1, 0)),
    ],
    ids=["another layer", "transposed", "rows shifted", "norm shifted", "norm negative", "last norm", "embedding"],
)
def test_what_is_no_moved_scale_is_caught(tmp_path: Path, name: str, damage: Callable[..., torch.Tensor]) -> None:
    target, model = export_by_hand(tmp_path, families.config("mistral"), "compressed-tensors", **{name: damage})
    assert target.read_back(model, None, Projection())[0].passed is False


@pytest.mark.parametrize("family", ["mistral", "gemma", "llama-tied-biased"])
def test_the_adapter_is_found_behind_the_moved_scales(tmp_path: Path, family: str) -> None:
    """Artefact and bare twin have scales of their own; with those taken out, only the adapter is between them."""
    base = toys.save_base(tmp_path / "base", families.config(family))
    run = load_run(toys.save_run(tmp_path / "run", base, toys.add_adapter(toys.load_plain(base))))
    model, bare = run.merged("original"), run.without_adapter().merged("original")
    stored, twin, projection = smoothed(model), smoothed(bare, seed=4), Projection()

    def expected(name: str) -> Expected:
        merged, base = read_both(model, bare, name)
        return Expected(merged, None if base is None else merged - base, lambda: twin[name].clone())

    compare_smoothed(model, stored, lambda name: stored[name].clone(), expected, projection)
    found = projection.record()
    assert found is not None
    assert found["tensors"] == 21
    assert found["value"] == pytest.approx(1, abs=0.02), "factors of rows are fitted"


def test_scales_beyond_float16_are_refused(tmp_path: Path) -> None:
    huge = {UP: lambda tensors: tensors[UP] * 1e8}
    with pytest.raises(InputMissingError, match=r"up_proj\.weight_scale has values up to .* float16 ends at 65504"):
        export_by_hand(tmp_path, families.config("mistral"), "autoawq", **huge)
