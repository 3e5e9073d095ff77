"""The tokenizer beside an adapter is the one that was trained with, by its files and by its ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from export import toys
from training.tiny import train_tiny
from transformers import AutoTokenizer

from qdpo.cli.main import main
from qdpo.config.schema import ModelSection
from qdpo.data.template import NAMED
from qdpo.errors import DataError
from qdpo.run.tokenizer import TRICKY, save_tokenizer

if TYPE_CHECKING:
    from training.tiny import Tiny

MATERIAL = Path(__file__).resolve().parents[1] / "material"
TURN = "<s>user: hi</s> there"


def llama(folder: Path, **settings: Any) -> Path:
    """A folder with a Llama tokenizer: a sentencepiece vocabulary, and settings as Meta's have them."""
    folder.mkdir()
    shutil.copy(MATERIAL / "stories260K" / "tokenizer.json", folder)
    shutil.copy(MATERIAL / "mistral" / "tokenizer.model.v1", folder / "tokenizer.model")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**special, **settings}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def save(base: Path, out: Path, tokenizer: Any = None, *texts: str) -> int:
    out.mkdir()
    used = tokenizer or AutoTokenizer.from_pretrained(base)
    return save_tokenizer(used, ModelSection(name=str(base)), out, texts)


def test_what_transformers_saves_can_be_another_tokenizer(tmp_path: Path) -> None:
    """The reason for all of this: if it is mended there, the copying may go."""
    tokenizer = AutoTokenizer.from_pretrained(llama(tmp_path / "base", legacy=True))
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.encode(TURN) != tokenizer.encode(TURN)
    assert not (tmp_path / "saved" / "tokenizer.model").exists()


@pytest.mark.parametrize("settings", [{"legacy": True}, {"legacy": False}, {}, {"legacy": True, "add_bos_token": True}])
def test_files_are_the_bases_to_the_byte_and_ids_are_the_same(settings: dict[str, Any], tmp_path: Path) -> None:
    base = llama(tmp_path / "base", **settings)
    assert save(base, tmp_path / "out", None, TURN) == len(TRICKY) + 1
    names = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    one, other = (AutoTokenizer.from_pretrained(folder) for folder in (base, tmp_path / "out"))
    assert one.encode(TURN) == other.encode(TURN)


def test_a_template_of_the_run_is_all_that_changes(tmp_path: Path) -> None:
    base = llama(tmp_path / "base", legacy=True, chat_template="own {{ messages }}")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = NAMED["mistral"]
    save(base, tmp_path / "out", tokenizer, TURN)
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again.chat_template == NAMED["mistral"]
    assert again.encode(TURN) == tokenizer.encode(TURN)
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["legacy"] is True
    assert "chat_template" not in settings
    for name in ("tokenizer.json", "tokenizer.model"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()


def test_a_template_file_of_the_base_stays_when_it_is_the_runs(tmp_path: Path) -> None:
    base = llama(tmp_path / "base")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    save(base, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_bytes() == b"{{ messages }}"


def test_files_that_need_the_bases_config_are_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = llama(tmp_path / "base")
    (base / "tokenizer_config.json").unlink()  # which tokenizer it is, config.json says
    wanted = AutoTokenizer.from_pretrained(base)
    save(base, tmp_path / "out", wanted, TURN)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode(TURN) == wanted.encode(TURN)
    assert (tmp_path / "out" / "tokenizer.model").is_file()


def test_other_ids_are_named(tmp_path: Path) -> None:
    base = llama(tmp_path / "base", legacy=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["hello world"])

    class Forgetful:
        """A tokenizer that loses a token when it is saved."""

        chat_template = None

        def encode(self, text: str, **settings: Any) -> list[int]:
            return tokenizer.encode(text, **settings)

        def save_pretrained(self, folder: str) -> None:
            AutoTokenizer.from_pretrained(base).save_pretrained(folder)

    with pytest.raises(DataError, match=r"gives other ids once it is saved: .* from token \d+ on, and was"):
        save(base, tmp_path / "out", Forgetful(), "oh hello world")


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base with a `legacy` tokenizer, and a run on it."""
    folder = tmp_path_factory.mktemp("legacy")
    base = llama(folder / "base", legacy=True, chat_template=(tiny.model / "chat_template.jinja").read_text())
    (base / "config.json").unlink()
    model = toys.llama(vocab_size=512, bos_token_id=1, eos_token_id=2, architectures=["LlamaForCausalLM"])
    toys.save_base(folder / "model", model)
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        shutil.copy(folder / "model" / name, base)
    train_tiny(tiny, folder / "run", f"model.name={base}", "train.max_steps=3", "samples.count=0")
    return base, folder / "run"


def test_a_run_keeps_the_files_beside_its_adapter(run: tuple[Path, Path]) -> None:
    base, folder = run
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        assert (folder / "adapter" / name).read_bytes() == (base / name).read_bytes()
    one, other = (AutoTokenizer.from_pretrained(path) for path in (base, folder / "adapter"))
    assert one.encode(TURN) == other.encode(TURN)


@pytest.mark.parametrize("format", ["safetensors", "gguf"])
def test_exports_tokenise_as_the_run_has_trained(format: str, run: tuple[Path, Path], tmp_path: Path) -> None:
    base, folder = run
    given = ["--run", str(folder), "--format", format, "--out", str(tmp_path / "out")]
    assert main(["merge-export", *given, *(["--quant", "f16"] if format == "gguf" else [])]) == 0
    verdict = json.loads((tmp_path / "out" / "verify.json").read_text())
    tokens = [c for artefact in verdict["artefacts"] for c in artefact["checks"] if c["name"] == "same tokens"]
    assert [check["passed"] for check in tokens] in ([True], [None])
    if format == "safetensors":
        for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
            assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
