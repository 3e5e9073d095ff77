"""The artefacts inside an export, each able to be read back, to tokenise, and to be scored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import gguf
import torch

from qdpo.errors import InputMissingError
from qdpo.export.adapter import Adapter
from qdpo.export.folder import rounded
from qdpo.export.gguf.convert import FACTORS, GgufFile, mapped_tensors, types_of
from qdpo.export.gguf.encode import decode
from qdpo.export.gguf.families import family_of, from_gguf, to_gguf
from qdpo.export.gguf.format import general_of, vocabulary_of
from qdpo.export.gguf.kinds import KINDS
from qdpo.export.gguf.rope import frequency_factors
from qdpo.export.gguf.vocabulary import read_template
from qdpo.export.merged import MergedModel
from qdpo.export.request import Request
from qdpo.export.source import Run, read_json
from qdpo.export.tensors import TensorFiles
from qdpo.export.verify.checks import Check, from_problems
from qdpo.export.verify.compare import compare_all
from qdpo.export.verify.scorers import Encode, LlamaScorer, Scorer, TorchScorer, has_llama_cpp


class Target(Protocol):
    """One artefact.

    Attributes:
        name: for the table.
        kind: its precision: a GGUF type, a dtype, or awq.
    """

    @property
    def name(self) -> str: ...

    kind: str

    def read_back(self, model: MergedModel) -> list[Check]:
        """Compare what is stored with the merged model."""

    def encoder(self) -> tuple[Encode | None, str]:
        """The artefact's own tokenizer (rendered text to ids), or None; and what it is, or why there is none."""

    def scorer(self, model: MergedModel, context: int) -> contextlib.AbstractContextManager[Scorer]:
        """The artefact in the engine that users run it with, or the closest to it that is installed."""


def targets_of(folder: Path, record: dict[str, Any], run: Run) -> list[Target]:
    """The artefacts of an export.

    Raises:
        InputMissingError: an unknown format.
    """
    format = record.get("format")
    if format == "safetensors":
        return [FolderTarget(folder, str(record["dtype"]), run)]
    if format in ("gguf", "ollama"):
        return [
            GgufTarget(folder / name, str(kind), run, record["merge_base"]) for name, kind in record["files"].items()
        ]
    if format == "gguf-lora":
        return [LoraTarget(folder / name, str(kind), run) for name, kind in record["files"].items()]
    raise InputMissingError(f"{folder} has format {format!r}, which this version of qdpo cannot verify")


def model_with(config: dict[str, Any], state: Iterator[tuple[str, torch.Tensor]], dtype: torch.dtype) -> Any:
    """A transformers model filled with given weights.

    Args:
        config: contents of config.json.
        state: names and float32 values; a tied head may be left out.
        dtype: what the model computes in.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        key: value for key, value in config.items() if key not in ("dtype", "torch_dtype", "transformers_version")
    }
    prepared = AutoConfig.for_model(**settings)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(prepared, dtype=dtype)
    model.load_state_dict({name: value.to(dtype) for name, value in state}, strict=False, assign=True)
    model.tie_weights()
    if empty := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise InputMissingError(f"{len(empty)} weights are missing (first: {empty[0]})")
    return model


def scoring_dtype() -> torch.dtype:
    """What torch scores in: float32 on a CPU; bfloat16 on a GPU, where a large model would not fit otherwise."""
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


@contextlib.contextmanager
def torch_scorer(model: Any, engine: str) -> Iterator[Scorer]:
    """A scorer that is freed at the end."""
    if torch.cuda.is_available():
        model.to("cuda")
    scorer = TorchScorer(model)
    scorer.engine = engine
    yield scorer
    scorer.model = None


def template_in(folder: Path) -> str | None:
    """The chat template of a tokenizer folder."""
    settings = folder / "tokenizer_config.json"
    return read_template(folder, read_json(settings) if settings.is_file() else {})


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
        config = read_json(self.folder / "config.json")
        wanted = {**model.config, "dtype": config.get("dtype")}
        wanted.pop("torch_dtype", None)
        problems = [
            f"config.json: {key} differs" for key in wanted.keys() | config.keys() if wanted.get(key) != config.get(key)
        ]
        if template_in(self.folder) != template_in(self.run.tokenizer_files()[0].parent):
            problems.append("the chat template differs from the run's")
        return [
            comparison.check(set(model.names) - set(files), set(files) - set(model.names)),
            from_problems("settings", problems, f"{len(config)} settings equal the base's; no leftover quantization"),
        ]

    def encoder(self) -> tuple[Encode | None, str]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        return lambda text: [int(i) for i in tokenizer.encode(text, add_special_tokens=False)], "transformers"

    @contextlib.contextmanager
    def scorer(self, model: MergedModel, context: int) -> Iterator[Scorer]:
        from transformers import AutoModelForCausalLM

        dtype = torch.float32 if self.kind == "float32" else scoring_dtype()
        with torch_scorer(AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype), "transformers") as scorer:
            yield scorer


@dataclass
class GgufTarget:
    """A GGUF file."""

    path: Path
    kind: str
    run: Run
    merge_base: Any

    @property
    def name(self) -> str:
        return self.path.name

    def read_back(self, model: MergedModel) -> list[Check]:
        reader = gguf.GGUFReader(self.path)
        found = {tensor.name: tensor for tensor in reader.tensors}
        family = family_of(model.config)
        tensors = mapped_tensors(family, model)
        types = types_of(KINDS[self.kind], tensors, model.config["num_hidden_layers"])
        present = [tensor for tensor in tensors if tensor.gguf_name in found]
        problems = [
            f"{t.gguf_name} is {found[t.gguf_name].tensor_type.name}, expected {types[t.name].name}"
            for t in present
            if found[t.gguf_name].tensor_type != types[t.name]
        ]
        by_name = {tensor.name: tensor for tensor in present}

        def stored(name: str) -> tuple[torch.Tensor, str]:
            tensor = found[by_name[name].gguf_name]
            shape = tuple(int(size) for size in reversed(tensor.shape))
            return decode(tensor.data, tensor.tensor_type, shape), tensor.tensor_type.name

        comparison = compare_all(by_name, stored, lambda name: to_gguf(family, model.config, name, model.read(name)))
        factors = frequency_factors(model.config)
        if factors is not None:
            present_factors = torch.from_numpy(found[FACTORS].data.copy()) if FACTORS in found else torch.zeros(0)
            comparison.add(FACTORS, present_factors, torch.from_numpy(factors), "F32")
        comparison.problems += problems
        expected = {tensor.gguf_name for tensor in tensors} | ({FACTORS} if factors is not None else set())
        read_back = comparison.check(expected - found.keys(), found.keys() - expected)
        return [read_back, self._settings(reader, model)]

    def _settings(self, reader: gguf.GGUFReader, model: MergedModel) -> Check:
        """Compare all keys, the vocabulary and the template among them, with what a fresh conversion would write."""
        request = Request(self.run, self.path.parent, self.merge_base)
        vocabulary = vocabulary_of(self.run, model)
        fresh = GgufFile(self.path, KINDS[self.kind], model, vocabulary, general_of(request)).keys()
        found = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        differ = [key for key in sorted(fresh.keys() | found.keys()) if not _same(fresh.get(key), found.get(key))]
        problems = [
            f"{key} differs" if key in fresh and key in found else f"{key} is missing or extra" for key in differ
        ]
        return from_problems(
            "settings", problems, f"{len(found)} keys equal the model's, {len(vocabulary.tokens):,} tokens"
        )

    def encoder(self) -> tuple[Encode | None, str]:
        if not has_llama_cpp():
            return None, "llama-cpp-python is not installed (pip install 'qdpo[verify]')"
        import llama_cpp

        llama = llama_cpp.Llama(model_path=str(self.path), vocab_only=True, verbose=False)

        def encode(text: str) -> list[int]:
            return [int(i) for i in llama.tokenize(text.encode(), add_bos=False, special=True)]

        return encode, "llama.cpp"

    @contextlib.contextmanager
    def scorer(self, model: MergedModel, context: int) -> Iterator[Scorer]:
        if has_llama_cpp():
            scorer = LlamaScorer(self.path, context)
            try:
                yield scorer
            finally:
                scorer.close()
            return
        dequantised = model_with(model.config, dequantised_state(self.path, model), scoring_dtype())
        with torch_scorer(dequantised, "torch on dequantised tensors") as torched:
            yield torched


def dequantised_state(path: Path, model: MergedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """A GGUF file's weights under transformers' names."""
    family = family_of(model.config)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for mapped in mapped_tensors(family, model):
        tensor = found[mapped.gguf_name]
        values = decode(tensor.data, tensor.tensor_type, tuple(int(size) for size in reversed(tensor.shape)))
        yield mapped.name, from_gguf(family, model.config, mapped.name, values)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-6 * max(abs(one), abs(other))
    return bool(one == other)


@dataclass
class LoraTarget:
    """A GGUF adapter."""

    path: Path
    kind: str
    run: Run

    @property
    def name(self) -> str:
        return self.path.name

    def _pairs(self) -> tuple[dict[str, torch.Tensor], float]:
        reader = gguf.GGUFReader(self.path)
        alpha = float(reader.fields["adapter.lora.alpha"].contents())
        tensors = {
            t.name: decode(t.data, t.tensor_type, tuple(int(size) for size in reversed(t.shape)))
            for t in reader.tensors
        }
        return tensors, alpha

    def _deltas(self, model: MergedModel) -> Iterator[tuple[str, torch.Tensor]]:
        """What the adapter adds to each tensor, under transformers' names."""
        tensors, alpha = self._pairs()
        family = family_of(model.config)
        for mapped in mapped_tensors(family, model):
            a, b = (tensors.get(f"{mapped.gguf_name}.lora_{side}") for side in "ab")
            if a is not None and b is not None:
                yield mapped.name, from_gguf(family, model.config, mapped.name, alpha / a.shape[0] * (b @ a))

    def read_back(self, model: MergedModel) -> list[Check]:
        expected = {
            name: scale * (b.float() @ a.float()) for name, (a, b, scale) in Adapter(self.run.adapter).pairs().items()
        }
        deltas = dict(self._deltas(model))
        common = [name for name in expected if name in deltas]
        comparison = compare_all(common, lambda name: (deltas[name], self.kind.upper()), expected.__getitem__)
        return [comparison.check(expected.keys() - deltas.keys(), deltas.keys() - expected.keys())]

    def encoder(self) -> tuple[Encode | None, str]:
        return None, "an adapter has no tokenizer; the base's GGUF has it"

    @contextlib.contextmanager
    def scorer(self, model: MergedModel, context: int) -> Iterator[Scorer]:
        base, deltas = TensorFiles.of_folder(self.run.base), dict(self._deltas(model))

        def state() -> Iterator[tuple[str, torch.Tensor]]:
            for name in base:
                yield name, base.read(name).float() + deltas.get(name, torch.zeros(()))

        with torch_scorer(model_with(model.config, state(), scoring_dtype()), "torch: base plus adapter") as scorer:
            yield scorer
