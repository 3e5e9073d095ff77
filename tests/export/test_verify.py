"""Verification: what is right passes, what is wrong in one place is caught."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from export import families, toys
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from qdpo.export.folder import write_safetensors
from qdpo.export.formats import Request
from qdpo.export.gguf import families as converter
from qdpo.export.gguf.format import write_gguf
from qdpo.export.gguf.lora import write_gguf_lora
from qdpo.export.source import load_run
from qdpo.export.verify import scorers
from qdpo.export.verify.checks import check_integrity
from qdpo.export.verify.run import verify_export
from qdpo.export.verify.tokens import TRICKY, tricky_texts
from qdpo.files import write_manifest


@pytest.fixture(autouse=True)
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests show must hold without it; test_llama_cpp.py runs it."""
    monkeypatch.setattr("qdpo.export.verify.gguf_target.has_llama_cpp", lambda: False)


def make_run(folder: Path, config: Any, **lora: Any) -> Path:
    """A run on a 4-bit base with held-out pairs."""
    base = toys.save_base(folder / "base", config)
    peft = toys.add_adapter(toys.load_4bit(base), **lora)
    return toys.add_data(toys.save_run(folder / "run", base, peft), base)


def verify(out: Path, **more: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The verdict, and the checks of the first artefact by name."""
    verdict = verify_export(out, pairs=6, **more)
    return verdict, {check["name"]: check for check in verdict["artefacts"][0]["checks"]}


def results(verdict: dict[str, Any]) -> dict[str, str]:
    """What follows from each measure of the first artefact."""
    return {finding["name"]: finding["result"] for finding in verdict["artefacts"][0]["findings"]}


def request(run: Path, format: str, *quants: str, merge_base: str = "trained") -> Request:
    return Request(load_run(run), run / "export" / format, merge_base, quants=quants)


def test_safetensors_passes_with_all_checks(tmp_path: Path) -> None:
    run = make_run(tmp_path, toys.mistral())
    out = write_safetensors(request(run, "safetensors"))
    verdict, checks = verify(out)
    assert verdict["verdict"] == "passed"
    assert {name: check["passed"] for name, check in checks.items()} == dict.fromkeys(
        ["integrity", "read-back", "settings", "same tokens"], True
    )
    assert "12 of 12 held-out sequences give the training ids" in checks["same tokens"]["detail"]
    assert results(verdict) == {
        "adapter in the weights": "passed",
        "divergence": "passed",
        "preference kept": "cannot be told",
        "plain text": "reported",
        "answers": "reported",
    }
    rows, measures = (verdict["artefacts"][0][key] for key in ("parity", "measures"))
    assert list(rows) == ["base", "trained", "rounded base", "exported"]
    assert rows["trained"]["kl"] == 0
    assert rows["exported"]["kl"] < 1e-6
    assert rows["base"]["kl"] > 1e-3, "the adapter does something"
    assert rows["base"]["margin"] == 0
    assert rows["base"]["accuracy"] is None, "against itself it has ties only"
    assert measures["preference"]["slope"]["value"] == pytest.approx(1, abs=1e-4)
    assert measures["projection"]["value"] == 1
    assert measures["projection"]["tensors"] == 14
    assert measures["text"]["change"]["value"] == pytest.approx(0, abs=1e-5)
    assert measures["divergence"]["total"]["value"] == pytest.approx(rows["exported"]["kl"], rel=1e-9)
    samples = verdict["artefacts"][0]["samples"]
    assert len(samples) == 3
    assert all(sample["trained"] == sample["exported"] for sample in samples)
    assert json.loads((out / "verify.json").read_text()) == verdict
    assert "| adapter in the weights | passed |" in (out / "README.md").read_text()
    assert check_integrity(out).passed, "what verification adds does not break the manifest"


def test_gguf_types_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, families.config("mistral"))
    verdict, checks = verify(write_gguf(request(run, "gguf", "f16", "q8_0", "q4_k_m")))
    assert verdict["verdict"] == "lost"
    assert {a["kind"]: a["verdict"] for a in verdict["artefacts"]} == {
        "f16": "passed",
        "q8_0": "passed",
        "q4_k_m": "lost",
    }
    found = {a["kind"]: a["measures"] for a in verdict["artefacts"]}
    kl = {kind: measures["divergence"]["total"]["value"] for kind, measures in found.items()}
    assert kl["f16"] < 1e-4 < kl["q8_0"] < kl["q4_k_m"]
    kept = {kind: measures["projection"]["value"] for kind, measures in found.items()}
    assert kept["f16"] == pytest.approx(1, abs=0.001)
    assert kept["q8_0"] == pytest.approx(1, abs=0.05)
    assert 0.6 < kept["q4_k_m"] < 0.9, "an NF4 base rounded once more loses the adapter"
    assert "--format gguf-lora" in capsys.readouterr().err, "what to do"
    assert checks["same tokens"]["passed"] is None
    assert "llama-cpp-python is not installed" in checks["same tokens"]["detail"]
    assert checks["read-back"]["passed"]
    assert verdict["artefacts"][0]["parity"]["exported"]["engine"] == "torch on dequantised tensors"
    assert [path.name for path in (run / "export").iterdir()] == ["gguf"], "the bare base's exports are gone"


@pytest.mark.parametrize("family", ["llama3-rope", "qwen2", "qwen3", "gemma", "gemma2", "phi3"])
def test_each_family_scores_as_trained_through_gguf(tmp_path: Path, family: str) -> None:
    targets = {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]} if family == "phi3" else {}
    run = make_run(tmp_path, families.config(family), **targets)
    verdict, _ = verify(write_gguf(request(run, "gguf", "f16")))
    assert verdict["verdict"] == "passed"
    assert verdict["artefacts"][0]["parity"]["exported"]["kl"] < 1e-4
    assert verdict["artefacts"][0]["measures"]["projection"]["value"] == pytest.approx(1, abs=0.01)


def test_adapter_file(tmp_path: Path) -> None:
    run = make_run(tmp_path, families.config("llama"))
    verdict, checks = verify(write_gguf_lora(request(run, "gguf-lora")))
    assert verdict["verdict"] == "passed"
    assert checks["read-back"]["passed"]
    rows, measures = (verdict["artefacts"][0][key] for key in ("parity", "measures"))
    assert rows["exported"]["kl"] < 1e-6
    assert rows["trained"]["kl"] > 1e-3, "on the original base it is another policy than the trained one"
    assert measures["projection"]["value"] == pytest.approx(1, abs=1e-5)
    assert measures["preference"]["slope"]["value"] == pytest.approx(1, abs=1e-4)


def test_original_base_is_held_to_its_merge_not_to_the_trained_policy(tmp_path: Path) -> None:
    run = make_run(tmp_path, families.config("llama"))
    verdict, _ = verify(write_gguf(request(run, "gguf", "f16", merge_base="original")))
    assert verdict["verdict"] == "passed"
    rows = verdict["artefacts"][0]["parity"]
    assert rows["merged"]["kl"] == 0
    assert rows["exported"]["kl"] < 1e-4
    assert rows["trained"]["kl"] > 1e-3


def test_without_data_the_rest_is_checked(tmp_path: Path) -> None:
    run = make_run(tmp_path, toys.mistral())
    (run / "config.yaml").unlink()
    verdict, checks = verify(write_safetensors(request(run, "safetensors")))
    assert verdict["verdict"] == "cannot be told"
    assert checks["scores"]["passed"] is None
    assert "config.yaml is missing" in checks["scores"]["detail"]
    assert results(verdict) == {"adapter in the weights": "passed"}


def test_a_tricky_text_that_the_template_refuses_is_left_out() -> None:
    tokenizer = toys.byte_tokenizer()
    template = str(tokenizer.chat_template)
    refusing = "{% if not messages[0]['content'] %}{{ raise_exception('no text') }}{% endif %}" + template
    assert tricky_texts(tokenizer, template) == [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in TRICKY
    ]
    assert tricky_texts(tokenizer, refusing) == tricky_texts(tokenizer, template)[1:]
    assert tricky_texts(tokenizer, None) == list(TRICKY[1:]), "plain texts, but for the empty one"


# --- integrity -------------------------------------------------------------------------------------------------------


def test_100_damages_are_found(tmp_path: Path) -> None:
    run = make_run(tmp_path, toys.mistral())
    out = write_safetensors(request(run, "safetensors"))
    weights = out / "model.safetensors"
    whole, chance = weights.read_bytes(), random.Random(0)
    found = 0
    for number in range(100):
        data = bytearray(whole)
        where = chance.randrange(1, len(data))
        if number % 3 == 0:
            del data[where:]
        elif number % 3 == 1:
            tail = max(data.rfind(b"\x01", 0, where), 1)
            data[tail:] = bytes(len(data) - tail)
        else:
            data[where] ^= 1 << chance.randrange(8)
        assert data != whole
        weights.write_bytes(data)
        found += check_integrity(out).passed is False
    assert found == 100
    weights.write_bytes(whole)
    assert check_integrity(out).passed


def test_a_damaged_export_fails_without_being_opened(tmp_path: Path) -> None:
    run = make_run(tmp_path, toys.mistral())
    out = write_safetensors(request(run, "safetensors"))
    (out / "model.safetensors").write_bytes(b"x")
    verdict, checks = verify(out)
    assert verdict["verdict"] == "failed"
    assert list(checks) == ["integrity"]


# --- negative controls -----------------------------------------------------------------------------------------------


def failed(checks: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, check in checks.items() if check["passed"] is False}


def without(monkeypatch: pytest.MonkeyPatch, architecture: str, **quirks: bool) -> None:
    """Convert a family as if a quirk were not known."""
    changed = dataclasses.replace(converter.FAMILIES[architecture], **quirks)
    monkeypatch.setitem(converter.FAMILIES, architecture, changed)


def test_missing_permutation_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, families.config("llama"))
    with monkeypatch.context() as patch:
        without(patch, "LlamaForCausalLM", permutes=False)
        out = write_gguf(request(run, "gguf", "f16"))
    verdict, checks = verify(out)
    assert failed(checks) == {"read-back"}
    assert results(verdict)["divergence"] == "lost"
    assert verdict["artefacts"][0]["parity"]["exported"]["kl"] > 0.01


def test_needless_permutation_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, families.config("qwen2"))
    with monkeypatch.context() as patch:
        without(patch, "Qwen2ForCausalLM", permutes=True)
        out = write_gguf(request(run, "gguf", "f16"))
    verdict, checks = verify(out)
    assert failed(checks) == {"read-back"}
    assert results(verdict)["divergence"] == "lost"


def test_gemma_norms_without_one_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, families.config("gemma"))
    with monkeypatch.context() as patch:
        without(patch, "GemmaForCausalLM", norm_plus_one=False)
        out = write_gguf(request(run, "gguf", "f16"))
    verdict, checks = verify(out)
    assert failed(checks) == {"read-back"}
    assert results(verdict)["divergence"] == "lost"


def test_missing_rope_factors_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, families.config("llama3-rope"))
    with monkeypatch.context() as patch:
        patch.setattr("qdpo.export.gguf.convert.frequency_factors", lambda config: None)
        out = write_gguf(request(run, "gguf", "f16"))
    assert "read-back" in failed(verify(out)[1])


def swap(out: Path, one: str, other: str) -> None:
    """Exchange two tensors of a safetensors export, and make its manifest right again."""
    tensors = load_file(out / "model.safetensors")
    tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    write_manifest(out)


def test_a_swapped_tensor_is_caught(tmp_path: Path) -> None:
    run = make_run(tmp_path, toys.mistral())
    out = write_safetensors(request(run, "safetensors"))
    swap(out, "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight")
    verdict, checks = verify(out)
    assert failed(checks) == {"read-back"}
    assert results(verdict)["divergence"] == "lost"


def test_a_swapped_tensor_in_gguf_is_caught(tmp_path: Path) -> None:
    run = make_run(tmp_path, families.config("llama"))
    out = write_gguf(request(run, "gguf", "q4_k_m"))
    path = next(out.glob("*.gguf"))
    reader = GGUFReader(path, "r+")
    by_name = {tensor.name: tensor for tensor in reader.tensors}
    up, gate = by_name["blk.0.ffn_up.weight"].data, by_name["blk.0.ffn_gate.weight"].data
    kept = up.copy()
    up[:] = gate
    gate[:] = kept
    reader.data.flush()
    write_manifest(out)
    assert "read-back" in failed(verify(out)[1])


def test_another_template_is_caught(tmp_path: Path) -> None:
    run = make_run(tmp_path, toys.mistral())
    out = write_safetensors(request(run, "safetensors"))
    template = out / "chat_template.jinja"
    template.write_text(template.read_text().replace(": ", " - "))
    write_manifest(out)
    _, checks = verify(out)
    assert failed(checks) == {"settings"}
    assert "chat template differs" in checks["settings"]["detail"]


def test_another_template_in_gguf_is_caught(tmp_path: Path) -> None:
    run = make_run(tmp_path, families.config("llama"))
    own = run / "adapter" / "chat_template.jinja"
    text = own.read_text()
    own.write_text(text.replace(": ", " - "))
    write_manifest(run / "adapter")
    out = write_gguf(request(run, "gguf", "f16"))
    own.write_text(text)
    write_manifest(run / "adapter")
    assert failed(verify(out)[1]) == {"settings"}


def test_another_tokenizer_is_caught(tmp_path: Path) -> None:
    run = make_run(tmp_path, toys.mistral())
    out = write_safetensors(request(run, "safetensors"))
    path = out / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][10:]
    path.write_text(json.dumps(tokenizer))
    write_manifest(out)
    assert failed(verify(out)[1]) == {"same tokens"}


def test_the_untrained_base_is_caught(tmp_path: Path) -> None:
    """An export that lost the adapter: what merging into 4 bit does."""
    run = make_run(tmp_path, toys.mistral())
    out = write_safetensors(request(run, "safetensors"))
    merged = load_run(run).merged("trained")
    merged._adapter = None
    save_file({n: merged.read(n) for n in merged.names}, out / "model.safetensors", metadata={"format": "pt"})
    write_manifest(out)
    verdict, checks = verify(out)
    assert failed(checks) == {"read-back"}
    assert verdict["verdict"] == "failed"
    measures = verdict["artefacts"][0]["measures"]
    assert measures["projection"]["value"] == 0
    assert measures["preference"]["slope"]["value"] == pytest.approx(0, abs=1e-3)


def test_scorer_generates_what_transformers_generates(tmp_path: Path) -> None:
    model = toys.load_plain(toys.save_base(tmp_path / "base", toys.mistral()))
    ids = [5, 9, 14, 3]
    theirs = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=[])
    ours = scorers.TorchScorer(model).generate([ids], frozenset(), 12)
    assert ours == [theirs[0, 4:].tolist()]
