"""Safetensors in the Hugging Face layout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from qdpo.export.folder import rounded
from qdpo.export.merged import MergedModel
from qdpo.export.source import Run
from qdpo.export.tensors import TensorFiles
from qdpo.export.verify.checks import Check, from_problems
from qdpo.export.verify.compare import compare_all
from qdpo.export.verify.scorers import Encode, Scorer
from qdpo.export.verify.target import template_in, torch_scorer
from qdpo.export.whole import computing_dtype
from qdpo.files import read_json


@dataclass
class FolderTarget:
    """Safetensors in the Hugging Face layout."""

    folder: Path
    kind: str
    run: Run

    @property
    def name(self) -> str:
        return "safetensors"

    def read_back(self, model: MergedModel) -> list[Check]:
        files = TensorFiles.of_folder(self.folder)

        def expected(name: str) -> torch.Tensor:
            return rounded(name, model.read(name), files.places[name].dtype).float()

        names = [name for name in model.names if name in files]
        comparison = compare_all(names, lambda name: (files.read(name).float(), "float32"), expected)
        problems = settings_problems(self.folder, self.run, model, besides=set())
        return [
            comparison.check(set(model.names) - set(files), set(files) - set(model.names)),
            from_problems("settings", problems, "config.json equals the base's; no leftover quantization"),
        ]

    def not_run(self) -> list[Check]:
        return []

    def encoder(self) -> tuple[Encode | None, str]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        return lambda text: [int(i) for i in tokenizer.encode(text, add_special_tokens=False)], "transformers"

    @contextlib.contextmanager
    def scorer(self, model: MergedModel, context: int) -> Iterator[Scorer]:
        from transformers import AutoModelForCausalLM

        dtype = torch.float32 if self.kind == "float32" else computing_dtype()
        with torch_scorer(AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype), "transformers") as scorer:
            yield scorer


def settings_problems(folder: Path, run: Run, model: MergedModel, besides: set[str]) -> list[str]:
    """Whether config.json and chat template of a model folder are those of the run.

    Args:
        folder: the model folder.
        run: where it came from.
        model: the merged model.
        besides: keys of config.json that the format adds.
    """
    config = {key: value for key, value in read_json(folder / "config.json").items() if key not in besides}
    wanted = {**model.config, "dtype": config.get("dtype")}
    wanted.pop("torch_dtype", None)
    problems = [
        f"config.json: {key} differs" for key in wanted.keys() | config.keys() if wanted.get(key) != config.get(key)
    ]
    if template_in(folder) != template_in(run.tokenizer_files()[0].parent):
        problems.append("the chat template differs from the run's")
    return problems
