"""The table of formats: what it names is there, and how an export is used is said for each."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from qdpo.errors import InputMissingError, UsageError
from qdpo.export.formats import FORMATS, OPTIONS, Place, _load, check_options, targets_of
from qdpo.export.verify.target import Target

RUN: Any = None
FILES = ("toy-Q8_0.gguf",)


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_row_names_is_there(name: str) -> None:
    format = FORMATS[name]
    assert callable(_load(format.writer))
    assert issubclass(_load(format.target), Target)
    assert set(format.options) <= OPTIONS.keys()


def test_every_option_belongs_to_a_format() -> None:
    assert {option for format in FORMATS.values() for option in format.options} == OPTIONS.keys()


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", FORMATS)
def test_only_an_option_of_the_format_is_taken(name: str, option: str) -> None:
    given = dict.fromkeys(OPTIONS, False) | {option: True}
    if option in FORMATS[name].options:
        check_options(name, given)
    else:
        with pytest.raises(UsageError, match=rf"^--{option.replace('_', '-')} .*, not for {name}(\n|$)"):
            check_options(name, given)


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_is_read_back_by_its_format(name: str) -> None:
    record = {"format": name, "merge_base": "trained", "dtype": "float32", "files": {FILES[0]: "q8_0"}}
    (target,) = targets_of(Path("out"), record, RUN)
    assert type(target) is _load(FORMATS[name].target)
    assert (target.name, target.kind) == {
        "safetensors": ("safetensors", "float32"),
        "awq": ("awq", "awq"),
    }.get(name, (FILES[0], "q8_0"))


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InputMissingError, match="has format 'exl2', which this version of qdpo cannot verify"):
        targets_of(Path("out"), {"format": "exl2"}, RUN)


@pytest.mark.parametrize("repo", [None, "user/toy"])
@pytest.mark.parametrize("name", FORMATS)
def test_usage_names_the_place(name: str, repo: str | None) -> None:
    usage = FORMATS[name].usage(Place("toy" if repo else f"export/{name}", FILES, "toy", repo))
    if usage.language == "python":
        compile(usage.code, name, "exec")
        where = repo or f"export/{name}"
        assert usage.code.count(f'"{where}"') == 2
        assert usage.instead == f"vllm serve {where}"
        return
    lines = usage.code.splitlines()
    assert (lines[0] == "hf download user/toy --local-dir toy") is (repo is not None)
    assert (
        lines[bool(repo) :]
        == {
            "ollama": [f"ollama create toy -f {'toy' if repo else 'export/ollama'}/Modelfile", "ollama run toy"],
            "gguf": [f"llama-cli -m {'toy' if repo else 'export/gguf'}/toy-Q8_0.gguf"],
            "gguf-lora": [f"llama-cli -m BASE.gguf --lora {'toy' if repo else 'export/gguf-lora'}/toy-Q8_0.gguf"],
        }[name]
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_name_with_blanks_stays_one_word(name: str) -> None:
    usage = FORMATS[name].usage(Place("my export", ("a b.gguf",), "a run"))
    for line in usage.code.splitlines() if usage.language == "bash" else [usage.instead or ""]:
        assert "my export" in " ".join(shlex.split(line)) or shlex.split(line)[-1] == "a run"
        assert "export" not in shlex.split(line)
