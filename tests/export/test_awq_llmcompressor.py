"""AWQ by llmcompressor itself: every family, both layouts, scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from export import families, toys

from qdpo.export.awq.format import write_awq
from qdpo.export.formats import Request
from qdpo.export.moments import take_moments
from qdpo.export.output import RECORD
from qdpo.export.source import load_run
from qdpo.export.verify.awq_target import AwqWeights
from qdpo.export.verify.run import verify_export

pytest.importorskip("llmcompressor", reason="needs llmcompressor (pip install 'qdpo[awq]')")

PHI3 = {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}


def make_run(folder: Path, family: str, **changes: int) -> Path:
    base = toys.save_base(folder / "base", families.config(family, num_hidden_layers=2, **changes))
    peft = toys.add_adapter(toys.load_4bit(base), **(PHI3 if family == "phi3" else {}))
    run = toys.save_run(folder / "run", base, peft)
    if family == "qwen2":
        path = run / "adapter" / "tokenizer.json"
        tokenizer = json.loads(path.read_text())
        # transformers gives every model of this type Qwen's own normalizer
        path.write_text(json.dumps({**tokenizer, "normalizer": {"type": "NFC"}}))
    return toys.add_data(run, base)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {}),
        ("mistral", {"num_key_value_heads": 4}),  # scales move from v_proj to o_proj too
        pytest.param("llama-tied-biased", {"num_key_value_heads": 4}, marks=pytest.mark.slow),
        ("qwen2", {}),
        pytest.param("qwen3", {}, marks=pytest.mark.slow),
        ("gemma", {}),
        pytest.param("gemma2", {}, marks=pytest.mark.slow),
        ("phi3", {"num_key_value_heads": 4}),
        pytest.param("llama-hidden-320", {}, marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_each_family_passes_verification(tmp_path: Path, family: str, changes: dict[str, int]) -> None:
    run = load_run(make_run(tmp_path, family, **changes))
    out = write_awq(Request(run, run.folder / "export" / "awq"))
    verdict = verify_export(out, pairs=4)
    checks = {check["name"]: check for check in verdict["artefacts"][0]["checks"]}
    assert all(check["passed"] for check in checks.values()), checks
    assert set(checks) == {"integrity", "read-back", "settings", "same tokens"}
    kept = verdict["artefacts"][0]["measures"]["projection"]
    assert kept["tensors"] == {"phi3": 8}.get(family, 14)
    assert kept["value"] == pytest.approx(1, abs=0.3), "the moved scales are taken out"
    row = verdict["artefacts"][0]["parity"]["exported"]
    assert row["engine"] == "transformers + compressed-tensors"
    assert row["kl"] < 0.3, "random weights are the worst case for 4 bits"
    record = json.loads((out / RECORD).read_text())
    assert record["group_size"] == (32 if family == "llama-hidden-320" else 128)
    assert record["calibration"]["pairs"] == 12
    assert not list(out.glob(".*")), "llmcompressor's own files are gone"


def test_the_layouts_hold_what_compressed_tensors_computes_with(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run = load_run(make_run(tmp_path, "mistral"))
    packed = write_awq(Request(run, tmp_path / "packed"))
    repacked = write_awq(Request(run, tmp_path / "repacked", awq_layout="autoawq"))
    loaded = AutoModelForCausalLM.from_pretrained(packed, dtype=torch.float32)
    with torch.no_grad():
        loaded(torch.tensor([[5, 6, 7]]))  # the first forward decompresses
    theirs = loaded.state_dict()
    ours, other = AwqWeights(packed), AwqWeights(repacked)
    assert len(ours.layers) == 14
    for layer in ours.layers:
        name = f"{layer}.weight"
        assert torch.equal(theirs[name].float(), ours.read(name)), name
        # 16 bits hold the scales with 8 and with 11 bits of precision
        assert torch.allclose(other.read(name), ours.read(name), rtol=0.005, atol=1e-6), name
    verdict = verify_export(repacked, run.folder, 4)
    checks = {check["name"]: check for check in verdict["artefacts"][0]["checks"]}
    assert verdict["verdict"] != "failed"
    assert checks["parity in transformers"]["passed"] is None
    assert "gptqmodel" in checks["parity in transformers"]["detail"]
    assert verdict["artefacts"][0]["parity"]["exported"]["engine"] == "torch on dequantised tensors"


def test_layers_that_do_not_fit_stay_in_16_bits(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, "llama", hidden_size=64, intermediate_size=172), as_trained=True)
    take_moments(run, 500)
    out = write_awq(Request(run, run.folder / "export" / "awq"))
    kept = [f"model.layers.{i}.mlp.down_proj" for i in (0, 1)]
    assert json.loads((out / RECORD).read_text())["kept_in_16_bits"] == kept
    verdict = verify_export(out, pairs=4)
    assert verdict["verdict"] != "failed"
    assert verdict["artefacts"][0]["measures"]["projection"]["value"] == pytest.approx(1, abs=0.1)
    weights, merged = AwqWeights(out), run.merged("trained")
    for layer in kept:
        found, wanted = weights.read(f"{layer}.weight"), merged.read(f"{layer}.weight")
        assert (found - wanted).norm() < 0.004 * wanted.norm()
        assert not torch.equal(found, wanted.bfloat16().float()), "rounded with feedback, as the others are"
