"""A GGUF file: a model, or an adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import gguf
import torch

from qdpo.console import note
from qdpo.export.formats import Request, Way
from qdpo.export.gguf.convert import FACTORS, GgufFile, mapped_tensors, types_of
from qdpo.export.gguf.encode import decode
from qdpo.export.gguf.families import family_of, to_gguf
from qdpo.export.gguf.format import general_of, plan_batch, vocabulary_of
from qdpo.export.gguf.kinds import KINDS
from qdpo.export.gguf.rounding import NONE, Rounding, rounding_of
from qdpo.export.gguf.settings import frequency_factors
from qdpo.export.source import TrainedRun
from qdpo.export.verify.bench import Bench
from qdpo.export.verify.checks import Check, from_problems
from qdpo.export.verify.projection import Projection, read_both
from qdpo.export.verify.readback import Expected, compare_all
from qdpo.export.verify.room import require_room
from qdpo.export.verify.scorers import Encode, LlamaScorer, Scorer, has_llama_cpp, llama_cpp
from qdpo.export.verify.target import BESIDE, Target, counted
from qdpo.export.whole import computing_dtype
from qdpo.model.adapter import Adapter
from qdpo.model.merged import MergedModel
from qdpo.model.tensors import TensorFiles

NO_LLAMA_CPP = "llama-cpp-python is not installed (pip install 'qdpo[verify]')"


@dataclass
class GgufTarget(Target):
    """A model as a GGUF file.

    Attributes:
        way: how its levels were chosen.
        imatrix: what its grids were found by, as `Request.imatrix`.
    """

    way: Way = "nearest"
    imatrix: str = NONE

    @classmethod
    def of_export(cls, folder: Path, record: dict[str, Any], run: TrainedRun) -> list[Self]:
        rounding = record.get("rounding") or {"way": "nearest", "imatrix": NONE}
        base = record.get("merge_base")
        return [cls(folder / name, str(kind), run, base, **rounding) for name, kind in record["files"].items()]

    @property
    def _request(self) -> Request:
        assert self.merge_base is not None
        return Request(self.run, self.path.parent, self.merge_base, rounding=self.way, imatrix=self.imatrix)

    def read_back(self, model: MergedModel, twin: Target | None, projection: Projection) -> list[Check]:
        reader = gguf.GGUFReader(self.path)
        found = {tensor.name: tensor for tensor in reader.tensors}
        family, bare = family_of(model.config), self.bare_model()
        tensors = mapped_tensors(family, model)
        rounding = rounding_of(self.run, model, self.way, self.imatrix).of_file(KINDS[self.kind])
        types = types_of(KINDS[self.kind], tensors, model.config, rounding.has_importance)
        present = {tensor.name: found[tensor.gguf_name] for tensor in tensors if tensor.gguf_name in found}
        beside = {tensor.name: tensor for tensor in gguf.GGUFReader(twin.path).tensors} if twin else {}

        def expected(name: str) -> Expected:
            merged, base = (
                None if values is None else to_gguf(family, model.config, name, values)
                for values in read_both(model, bare, name)
            )
            assert merged is not None
            other = beside.get(present[name].name)
            if base is None or other is None:
                return Expected(merged)
            return Expected(merged, torch.sub(merged, base, out=base), lambda: values_of(other))

        with counted(lambda name: (values_of(present[name]), present[name].tensor_type.name), len(present)) as stored:
            comparison = compare_all(present, stored, expected, projection)
        factors = frequency_factors(model.config)
        if factors is not None:
            present_factors = torch.from_numpy(found[FACTORS].data.copy()) if FACTORS in found else torch.zeros(0)
            comparison.add(FACTORS, present_factors, torch.from_numpy(factors), "F32")
        comparison.problems += [
            f"{tensor.name} is {tensor.tensor_type.name}, expected {types[name].name}"
            for name, tensor in present.items()
            if tensor.tensor_type != types[name]
        ]
        names = {tensor.gguf_name for tensor in tensors} | ({FACTORS} if factors is not None else set())
        read_back = comparison.check(names - found.keys(), found.keys() - names)
        return [read_back, self._settings(reader, model, rounding)]

    def _settings(self, reader: gguf.GGUFReader, model: MergedModel, rounding: Rounding) -> Check:
        """Compare all keys, the vocabulary and the template among them, with what a fresh conversion would write."""
        vocabulary = vocabulary_of(self.run, model)
        fresh = GgufFile(self.path, KINDS[self.kind], model, vocabulary, general_of(self._request), rounding).keys()
        found = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        differ = [key for key in sorted(fresh.keys() | found.keys()) if not _same(fresh.get(key), found.get(key))]
        problems = [
            f"{key} differs" if key in fresh and key in found else f"{key} is missing or extra" for key in differ
        ]
        return from_problems(
            "settings", problems, f"{len(found)} keys equal the model's, {len(vocabulary.tokens):,} tokens"
        )

    def twin(self, scratch: Path) -> Target:
        run = self.run.without_adapter()
        batch = plan_batch(replace(self._request, run=run, out=scratch, quants=(self.kind,)))
        require_room(scratch, batch.needed)
        note(BESIDE)
        batch.write(scratch)
        (name,) = batch.files
        return replace(self, path=scratch / name, run=run)

    def encoder(self) -> tuple[Encode | None, str]:
        if not has_llama_cpp():
            return None, NO_LLAMA_CPP
        llama = llama_cpp().Llama(model_path=str(self.path), vocab_only=True, verbose=False)

        def encode(text: str) -> list[int]:
            return [int(i) for i in llama.tokenize(text.encode(), add_bos=False, special=True)]

        return encode, "llama.cpp"

    def not_run(self) -> list[Check]:
        if has_llama_cpp():
            return []
        return [Check("parity in llama.cpp", None, f"{NO_LLAMA_CPP}; the dequantised tensors are scored in torch")]

    @contextlib.contextmanager
    def scorer(self, model: MergedModel, bench: Bench) -> Iterator[Scorer]:
        if has_llama_cpp():
            scorer = LlamaScorer(self.path, bench.context)
            try:
                yield scorer
            finally:
                scorer.close()
            return
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(self.path).tensors}
        family = family_of(model.config)
        places = {mapped.name: found[mapped.gguf_name] for mapped in mapped_tensors(family, model)}

        def read(name: str) -> torch.Tensor:
            return to_gguf(family, model.config, name, values_of(places[name]), back=True)

        engine = "torch on dequantised tensors"
        with bench.torch_scorer(model.config, places.keys(), read, computing_dtype(), engine) as torched:
            yield torched


class LoraTarget(Target):
    """An adapter as a GGUF file."""

    def _deltas(self, model: MergedModel) -> dict[str, Callable[[], torch.Tensor]]:
        """What the adapter adds to each tensor, by transformers' names; made when it is asked for."""
        reader, family = gguf.GGUFReader(self.path), family_of(model.config)
        alpha = float(reader.fields["adapter.lora.alpha"].contents())
        tensors = {tensor.name: tensor for tensor in reader.tensors}

        def delta(name: str, a: gguf.ReaderTensor, b: gguf.ReaderTensor) -> torch.Tensor:
            left, right = values_of(b), values_of(a)
            return to_gguf(family, model.config, name, (left @ right).mul_(alpha / right.shape[0]), back=True)

        deltas: dict[str, Callable[[], torch.Tensor]] = {}
        for mapped in mapped_tensors(family, model):
            a, b = (tensors.get(f"{mapped.gguf_name}.lora_{side}") for side in "ab")
            if a is not None and b is not None:
                deltas[mapped.name] = partial(delta, mapped.name, a, b)
        return deltas

    def read_back(self, model: MergedModel, twin: Target | None, projection: Projection) -> list[Check]:
        pairs, deltas = Adapter(self.run.adapter).pairs(), self._deltas(model)

        def expected(name: str) -> Expected:
            a, b, scale = pairs[name]
            delta = scale * (b.float() @ a.float())
            # The file holds the change alone; of the base it has nothing.
            return Expected(delta, delta, lambda: torch.zeros(()))

        common = [name for name in pairs if name in deltas]
        with counted(lambda name: (deltas[name](), self.kind.upper()), len(common)) as stored:
            comparison = compare_all(common, stored, expected, projection)
        return [comparison.check(pairs.keys() - deltas.keys(), deltas.keys() - pairs.keys())]

    def twin(self, scratch: Path) -> Target:
        return BareBase(self.path, self.kind, self.run.without_adapter())

    def encoder(self) -> tuple[Encode | None, str]:
        return None, "an adapter has no tokenizer; the base's GGUF has it"

    def not_run(self) -> list[Check]:
        return [Check("parity in llama.cpp", None, "needs a GGUF of the base beside it; scored in torch instead")]

    def scorer(self, model: MergedModel, bench: Bench) -> contextlib.AbstractContextManager[Scorer]:
        base, deltas = TensorFiles.of_folder(self.run.base), self._deltas(model)

        def read(name: str) -> torch.Tensor:
            values = base.read(name).float()
            return values.add_(deltas[name]()) if name in deltas else values

        return bench.torch_scorer(model.config, set(base), read, computing_dtype(), "torch: base plus adapter")


class BareBase(LoraTarget):
    """The base that an adapter file is used beside, without it."""

    def _deltas(self, model: MergedModel) -> dict[str, Callable[[], torch.Tensor]]:
        return {}


def values_of(tensor: gguf.ReaderTensor) -> torch.Tensor:
    """The float32 values of a tensor in a file, [rows, columns] as in torch."""
    return decode(tensor.data, tensor.tensor_type, tuple(int(size) for size in reversed(tensor.shape)))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-6 * max(abs(one), abs(other))
    return bool(one == other)
