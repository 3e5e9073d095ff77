"""Scoring by vLLM: by a stand-in in the default run, and by vLLM itself where QDPO_VLLM_PYTHON names its Python."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from export import fake_vllm, families, toys
from peft import PeftModel

from qdpo.cli.main import main
from qdpo.errors import InputMissingError, UnavailableError, UsageError
from qdpo.export.folder import write_safetensors
from qdpo.export.formats import Request
from qdpo.export.gguf.format import write_gguf
from qdpo.export.source import load_run
from qdpo.export.verify.run import verify_export
from qdpo.export.verify.scorers import Asked, Scorer, TorchScorer
from qdpo.export.verify.vllm_engine import vllm_scorer


@pytest.fixture
def python(tmp_path: Path) -> Path:
    return fake_vllm.python_with(tmp_path)


def scored(scorer: Scorer, asked: list[Asked]) -> list[torch.Tensor]:
    """Logits of each sequence, in one piece."""
    found: list[list[torch.Tensor]] = [[] for _ in asked]
    for number, rows in scorer.logits(asked):
        found[number].append(rows)
    return [torch.cat(rows) for rows in found]


def test_logits_and_answers_come_through(python: Path) -> None:
    ids = torch.randint(0, fake_vllm.VOCABULARY, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    asked = [Asked(ids, range(3, 149)), Asked(ids, range(149, 150)), Asked(ids[:2], range(2)), Asked(ids[:1], range(1))]
    table = fake_vllm.table()
    with vllm_scorer(python, Path("model"), "auto", 200) as scorer:
        assert scorer.engine == "vLLM 0.0-fake"
        for one, logits in zip(asked, scored(scorer, asked), strict=True):
            assert torch.equal(logits, table[[one.ids[position] for position in one.positions]])
        likeliest = [int(table[5].argmax())]
        likeliest.append(int(table[likeliest[0]].argmax()))
        assert scorer.generate([[1, 5], [5]], frozenset(), 2) == [likeliest, likeliest]
        assert scorer.generate([[5]], frozenset(likeliest[1:]), 9) == [likeliest[:1]]


def test_logits_that_are_not_what_the_engine_says_are_refused(python: Path) -> None:
    with (
        pytest.raises(UnavailableError, match=r"after token 0 vLLM says .*, the logits taken from it"),
        vllm_scorer(python, Path("lies"), "auto", 200) as scorer,
    ):
        scored(scorer, [Asked([1, 2, 3], range(3))])


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [("fails", "ValueError: architecture not supported", "printed last"), ("dies", "exit code 3", "not enough memory")],
)
def test_a_model_that_does_not_load_is_explained(python: Path, model: str, message: str, hint: str) -> None:
    with pytest.raises(UnavailableError, match=message) as caught, vllm_scorer(python, Path(model), "auto", 200):
        pass
    assert hint in str(caught.value.hint)


def test_a_python_without_vllm(tmp_path: Path) -> None:
    for python, error in ((Path(sys.executable), UnavailableError), (tmp_path / "none", InputMissingError)):
        with pytest.raises(error) as caught, vllm_scorer(python, Path("model"), "auto", 200):
            pass
        assert "pip install vllm" in str(caught.value.hint)


def test_what_does_not_go_together_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path), "--engine", "vllm"]) == UsageError.exit_code
    assert "--engine and --engine-python go together" in capsys.readouterr().err
    run = toy_run(tmp_path)
    out = write_gguf(Request(load_run(run), run / "export" / "gguf", "original", quants=("f16",)))
    with pytest.raises(UsageError, match="vLLM does not load gguf"):
        verify_export(out, vllm=Path(sys.executable))


def toy_run(folder: Path) -> Path:
    base = toys.save_base(folder / "base", families.config("llama", max_position_embeddings=512))
    run = toys.save_run(folder / "run", base, toys.add_adapter(toys.load_4bit(base)))
    return toys.add_data(run, base)


@pytest.fixture
def real() -> Path:
    if not (python := os.environ.get("QDPO_VLLM_PYTHON")):
        pytest.skip("QDPO_VLLM_PYTHON does not name the Python of an environment with vLLM (CONTRIBUTING.md)")
    return Path(python)


@pytest.mark.slow
def test_vllm_computes_what_transformers_computes(real: Path, tmp_path: Path) -> None:
    """Merged weights and the plain adapter, in float32."""
    run = toy_run(tmp_path)
    merged = write_safetensors(Request(load_run(run), tmp_path / "merged", "original"))
    ids = torch.randint(2, toys.VOCABULARY, (60,), generator=torch.Generator().manual_seed(3)).tolist()
    asked = [Asked(ids, range(20, 60)), Asked(ids[:2], range(2))]
    reference = TorchScorer(PeftModel.from_pretrained(toys.load_plain(tmp_path / "base"), run / "adapter"))
    answers = reference.generate([ids[:9], ids], frozenset({1}), 20)
    scorers = [
        vllm_scorer(real, merged, "float32", 128),
        vllm_scorer(real, tmp_path / "base", "float32", 128, run / "adapter", rank=4),
    ]
    for opened in scorers:
        with opened as scorer:
            for own, other in zip(scored(reference, asked), scored(scorer, asked), strict=True):
                assert toys.divergence(own, other) < 1e-6
            assert scorer.generate([ids[:9], ids], frozenset({1}), 20) == answers


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["compressed-tensors", "autoawq"])
def test_vllm_verifies_awq_in_both_layouts(real: Path, tmp_path: Path, layout: str) -> None:
    pytest.importorskip("llmcompressor", reason="needs qdpo[awq]")
    from qdpo.export.awq.format import write_awq

    run = toy_run(tmp_path)
    out = write_awq(Request(load_run(run), run / "export" / "awq", awq_layout=layout))  # type: ignore[arg-type]
    by_torch, by_vllm = (verify_export(out, pairs=4, vllm=python)["artefacts"][0] for python in (None, real))
    assert all(check["passed"] for check in by_vllm["checks"]), "nothing is left that could not be run"
    for row in ("rounded base", "exported"):
        assert by_vllm["parity"][row]["engine"].startswith("vLLM")
        assert by_vllm["parity"][row]["kl"] == pytest.approx(by_torch["parity"][row]["kl"], rel=0.05)


def test_an_adapter_is_not_verified_without_vllm(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is an adapter, which is scored by vLLM"):
        verify_export(toy_run(tmp_path) / "adapter")


@pytest.mark.slow
def test_vllm_verifies_an_adapter_on_its_base(real: Path, tmp_path: Path) -> None:
    run = toy_run(tmp_path)
    before = sorted(path.name for path in (run / "adapter").iterdir())
    verdict = verify_export(run / "adapter", pairs=4, vllm=real)
    (artefact,) = verdict["artefacts"]
    assert verdict["verdict"] == "passed"
    assert artefact["parity"]["exported"]["kl"] < 1e-6, "it is the policy on the 16-bit base"
    assert artefact["parity"]["exported"]["engine"].startswith("vLLM")
    assert sorted(path.name for path in (run / "adapter").iterdir()) == before


@pytest.mark.slow
def test_vllm_verifies_safetensors(real: Path, tmp_path: Path) -> None:
    run = toy_run(tmp_path)
    out = write_safetensors(Request(load_run(run), run / "export" / "safetensors"))
    verdict = verify_export(out, pairs=4, vllm=real)
    assert verdict["verdict"] == "passed"
    assert verdict["artefacts"][0]["parity"]["exported"]["kl"] < 1e-6
    assert list(out.parent.iterdir()) == [out], "the bare base that was written for vLLM is gone"
