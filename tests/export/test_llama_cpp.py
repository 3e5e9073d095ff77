"""llama.cpp itself on what qdpo writes: same logits, same tokens, same text, and its own quantiser beside ours."""

from __future__ import annotations

import ctypes
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from export import families, toys, toys_gguf
from gguf import GGMLQuantizationType
from materials import MATERIAL, STORIES

from qdpo.export.formats import Request
from qdpo.export.gguf.encode import decode
from qdpo.export.gguf.encode import encode as encode_tensor
from qdpo.export.gguf.format import write_gguf
from qdpo.export.gguf.imatrix import Imatrix, checked, read_imatrix, write_imatrix
from qdpo.export.gguf.kinds import KINDS, Traits, tensor_type
from qdpo.export.gguf.lora import write_gguf_lora
from qdpo.export.source import load_run
from qdpo.export.verify import scorers
from qdpo.export.verify.run import verify_export
from qdpo.export.verify.scorers import Asked, LlamaScorer, TorchScorer
from qdpo.export.verify.tokens import TRICKY

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python (pip install 'qdpo[verify]')")


def request(run: Path, *quants: str) -> Request:
    return Request(load_run(run), run / "export" / "gguf", "original", quants=quants)


def export(run: Path, *quants: str) -> Path:
    return write_gguf(request(run, *quants))


def some_ids(count: int = 100) -> list[int]:
    return torch.randint(2, toys.VOCABULARY, (count,), generator=torch.Generator().manual_seed(3)).tolist()


def in_llama_cpp(path: Path, ids: list[int], lora: Path | None = None) -> torch.Tensor:
    scorer = LlamaScorer(path, 256, lora)
    try:
        return all_logits(scorer, ids)
    finally:
        scorer.close()


def all_logits(scorer: LlamaScorer, ids: list[int]) -> torch.Tensor:
    """After each token, [tokens, vocabulary]."""
    return torch.cat([rows for _, rows in scorer.logits([Asked(ids, range(len(ids)))])])


def in_transformers(run: Path, base: Path, ids: list[int]) -> torch.Tensor:
    from peft import PeftModel

    return toys.logits(PeftModel.from_pretrained(toys.load_plain(base), run / "adapter"), torch.tensor([ids]))


@pytest.mark.parametrize("family", families.FAMILIES)
def test_f16_logits_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    run = toys_gguf.make_run(tmp_path, families.config(family))
    expected = in_transformers(run, tmp_path / "base", some_ids())
    found = in_llama_cpp(next(export(run, "f16").glob("*.gguf")), some_ids())
    assert toys.divergence(expected, found) < 1e-4
    assert (expected.argmax(-1) == found.argmax(-1)).double().mean() > 0.97


def test_llama_cpp_warns_of_nothing_and_errors_are_heard(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = toys_gguf.make_run(tmp_path, families.config("llama"))
    path = next(export(run, "f16").glob("*.gguf"))
    capfd.readouterr()
    library = scorers.llama_cpp()
    library.Llama(model_path=str(path), vocab_only=True, verbose=False)
    in_llama_cpp(path, some_ids(8))
    assert capfd.readouterr().err == ""
    library.llama_model_load_from_file(str(tmp_path / "none.gguf").encode(), library.llama_model_default_params())
    assert "none.gguf" in capfd.readouterr().err


def test_adapter_file_on_the_base(tmp_path: Path) -> None:
    run = toys_gguf.make_run(tmp_path, families.config("llama"), use_rslora=True)
    expected = in_transformers(run, tmp_path / "base", some_ids())
    lora = next(write_gguf_lora(Request(load_run(run), tmp_path / "lora")).glob("*.gguf"))
    nothing = toys.add_adapter(toys.load_plain(tmp_path / "base"), size=0.0)
    plain = toys.save_run(tmp_path / "plain", tmp_path / "base", nothing)
    base = next(export(plain, "f16").glob("*.gguf"))
    assert toys.divergence(expected, in_llama_cpp(base, some_ids(), lora)) < 1e-4
    assert toys.divergence(expected, in_llama_cpp(base, some_ids())) > 1e-3


def quantise(source: Path, target: Path, file_type: int, means: Mapping[str, torch.Tensor] | None = None) -> Path:
    """llama.cpp's own quantiser, with an importance matrix where there is one."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 1
    if means is not None:
        floats = {name: (ctypes.c_float * len(mean))(*mean.tolist()) for name, mean in means.items()}
        entry = llama_cpp.llama_model_imatrix_data
        params.imatrix = (entry * (len(floats) + 1))(*[(n.encode(), data, len(data)) for n, data in floats.items()])
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert code == 0
    return target


QUANTS = ["q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "iq4_xs", "iq4_nl", "q4_0", "q4_k_s", "q4_k_m", "q5_1", "q5_k_s"]
QUANTS += ["q5_k_m", "q6_k", "q8_0"]


@pytest.mark.parametrize("family", ["mistral", "gemma", "qwen2", "phi3", "llama-hidden-320"])
def test_types_and_errors_beside_llama_cpps_quantiser(tmp_path: Path, family: str) -> None:
    run = toys_gguf.make_run(tmp_path, families.config(family, num_hidden_layers=9))
    out = export(run, "f32", *QUANTS)
    exact = toys_gguf.tensors(out / "toy-F32.gguf")
    for quant in QUANTS:
        ours = out / f"toy-{KINDS[quant].name}.gguf"
        theirs = quantise(out / "toy-F32.gguf", tmp_path / "theirs.gguf", toys_gguf.fields(ours)["general.file_type"])
        assert toys_gguf.types(ours) == toys_gguf.types(theirs), quant
        assert error(toys_gguf.tensors(ours), exact) <= 1.02 * error(toys_gguf.tensors(theirs), exact), quant
        ours.unlink()


WEIGHTED = {
    "gemma": ["q2_k", "q2_k_s", "q3_k_m", "iq4_xs", "q4_0", "q4_k_m"],
    "llama-hidden-320": ["q3_k_m", "iq4_xs"],
}
"""Gemma's query heads all share a value head; 320 columns fit no super-block."""


@pytest.mark.parametrize("family", WEIGHTED)
def test_types_and_errors_with_an_importance_matrix(tmp_path: Path, family: str) -> None:
    """An error counts as much as the matrix says."""
    run = toys_gguf.make_run(tmp_path, families.config(family, num_hidden_layers=9))
    whole = export(run, "f32") / "toy-F32.gguf"
    exact = toys_gguf.tensors(whole)
    generator = torch.Generator().manual_seed(0)
    layers = {name: x.shape[1] for name, x in exact.items() if name.startswith("blk.") and x.ndim == 2}
    drawn = {name: torch.randn(width, generator=generator).exp() for name, width in layers.items()}
    write_imatrix(tmp_path / "i.gguf", Imatrix(drawn, ["drawn"], 2, 512))
    means = checked(read_imatrix(tmp_path / "i.gguf"), layers, "i.gguf")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    sharing = config["num_attention_heads"] // config["num_key_value_heads"]
    traits = Traits(9, shared_head="output.weight" not in exact, sharing=sharing, importance=True)
    for quant in WEIGHTED[family]:
        kind = KINDS[quant]
        theirs = quantise(whole, tmp_path / "theirs.gguf", kind.file_type, means)
        types = {name: tensor_type(kind, name, tuple(x.shape), traits) for name, x in exact.items()}
        assert {name: found.name for name, found in types.items()} == toys_gguf.types(theirs), quant
        limit = 1.02 * error(toys_gguf.tensors(theirs), exact, means)
        assert error(rounded(exact, types, means), exact, means) <= limit, quant
        assert error(rounded(exact, types, {}), exact, means) > limit, "without the matrix it is not as good"


def rounded(
    exact: Mapping[str, torch.Tensor], types: Mapping[str, GGMLQuantizationType], means: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What our encoder makes of all tensors."""
    return {
        name: decode(encode_tensor(name, x, types[name], means.get(name)), types[name], tuple(x.shape))
        for name, x in exact.items()
    }


def error(
    found: Mapping[str, torch.Tensor],
    exact: Mapping[str, torch.Tensor],
    means: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> float:
    """Of all weights together."""
    one = torch.ones(1)
    return sum(float(((found[n] - x).square() * means.get(n, one)).sum()) for n, x in exact.items()) ** 0.5


def encode(path: Path, text: str) -> list[int]:
    llama = llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)
    try:
        return [int(i) for i in llama.tokenize(text.encode(), add_bos=False, special=True)]
    finally:
        llama.close()


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_mistral_tokenizer_model(tmp_path: Path, version: str) -> None:
    """A lone tokenizer.model: llama.cpp gives the tokens of mistral-common."""
    folder = MATERIAL / "mistral"
    rows = {"v1": 32000, "v3": 32768}[version]
    run = toys_gguf.make_run(tmp_path, families.config("mistral", vocab_size=rows, num_hidden_layers=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (run / "adapter" / name).unlink(missing_ok=True)
        (tmp_path / "base" / name).unlink(missing_ok=True)
    shutil.copyfile(folder / f"tokenizer.model.{version}", run / "adapter" / "tokenizer.model")
    (run / "adapter" / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    path = next(export(run, "f16").glob("*.gguf"))
    words = encode(path, "Hello")
    assert len(words) == 1, "merged by score: one token, not its letters"
    if version == "v1":
        known: Any = json.loads((folder / "tokens_v1.json").read_text())
        text = (folder / "text_v1.txt").read_text()
        ids = known if isinstance(known, list) else known["tokens"]
        assert encode(path, text)[-5:] == ids[-5:]


def test_stories260k_through_every_type(tmp_path: Path) -> None:
    """A real trained model: llama.cpp's greedy text equals transformers', and quantisation costs what it should."""
    base = STORIES
    peft = toys.add_adapter(toys.load_plain(base), size=0.002)
    run = tmp_path / "run"
    peft.save_pretrained(run / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, run / "adapter" / name)
    toys.write_record(run, base, [])
    out = export(run, "f32", "f16", "bf16", "q8_0", "q5_1", "q4_0")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer.encode("Once upon a time")
    reference = TorchScorer(peft)
    (text,) = reference.generate([ids], frozenset({2}), 100)
    expected = toys.logits(peft, torch.tensor([ids + text]))
    assert len(text) > 60
    limits = {"F32": 1e-6, "F16": 1e-4, "BF16": 5e-4, "Q8_0": 2e-3, "Q5_1": 0.05, "Q4_0": 0.2}
    for kind, limit in limits.items():
        scorer = LlamaScorer(out / f"toy-{kind}.gguf", 256)
        try:
            assert toys.divergence(expected, all_logits(scorer, ids + text)) < limit, kind
            if kind in ("F32", "F16"):
                assert scorer.generate([ids], frozenset({2}), 100) == [text]
        finally:
            scorer.close()
    for tricky in TRICKY:
        if tricky:
            assert encode(out / "toy-F16.gguf", tricky) == tokenizer.encode(tricky, add_special_tokens=False), tricky


def test_the_time_of_writing_is_foreseen(tmp_path: Path) -> None:
    run = toys_gguf.make_run(tmp_path, families.config("llama"))
    scorer = LlamaScorer(next(export(run, "f16").glob("*.gguf")), 256)
    prompts = [some_ids(10), some_ids(5)]
    try:
        before = scorer.generate(prompts, frozenset(), 4)
        one, hundred = scorer.writing_seconds(prompts, 1), scorer.writing_seconds(prompts, 100)
        assert 0 < one < hundred
        assert scorer.generate(prompts, frozenset(), 4) == before, "nothing is left of the trial"
    finally:
        scorer.close()


def test_verification_runs_llama_cpp(tmp_path: Path) -> None:
    base = toys.save_base(tmp_path / "base", families.config("mistral"))
    run = toys.save_run(tmp_path / "run", base, toys.add_adapter(toys.load_4bit(base)))
    toys.add_data(run, base)
    verdict = verify_export(write_gguf(Request(load_run(run), run / "export" / "gguf", quants=("f16",))), pairs=4)
    checks = {check["name"]: check["passed"] for check in verdict["artefacts"][0]["checks"]}
    assert checks == dict.fromkeys(["integrity", "read-back", "settings", "same tokens"], True)
    assert verdict["verdict"] == "passed"
    rows = verdict["artefacts"][0]["parity"]
    assert rows["exported"]["engine"] == rows["rounded base"]["engine"] == "llama.cpp"
