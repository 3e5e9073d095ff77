"""`--format gguf-lora`: the adapter alone as GGUF, for llama.cpp's --lora beside a GGUF of the base."""

from __future__ import annotations

from pathlib import Path

import gguf
from gguf import GGMLQuantizationType as Type
from gguf import GGUFType, GGUFWriter

from qdpo.console import good, note
from qdpo.errors import InputMissingError, UsageError
from qdpo.export.formats import Request
from qdpo.export.gguf.encode import encode
from qdpo.export.gguf.families import Family, family_of, to_gguf
from qdpo.export.gguf.general import base_model, write_general
from qdpo.export.output import export_folder
from qdpo.files import read_json
from qdpo.model.adapter import Adapter
from qdpo.model.merged import EMBEDDING, HEAD, require_finite

TYPES = {"f32": Type.F32, "f16": Type.F16}


def write_gguf_lora(request: Request) -> Path:
    """Write the adapter as GGUF.

    llama.cpp scales by alpha / rank with one alpha for the whole file; where a module's own scale differs (rank and
    alpha patterns, rsLoRA) its B matrix carries the difference.

    Raises:
        UsageError: a type that adapters are not written in.
        InputMissingError: the adapter has parts that a GGUF adapter cannot hold.
        DiskError, OutputError: the export cannot be written.
    """
    quant = (request.quants or ("f32",))[0].lower()
    if len(request.quants) > 1 or quant not in TYPES:
        raise UsageError(f"--quant {','.join(request.quants)}: an adapter is written as f32 (default) or f16")
    run = request.run
    if run.grids is not None:
        raise UsageError(
            f"{run.name} was trained on the grid of {run.grids.kind}, which no adapter beside a file sees",
            f"--format gguf --quant {run.grids.kind}",
        )
    config = read_json(run.base / "config.json")
    family, adapter = family_of(config), Adapter(run.adapter)
    names = _gguf_names(family, adapter, config["num_hidden_layers"])
    kind, file_name = TYPES[quant], f"{run.name}-lora-{quant.upper()}.gguf"
    needed = (run.adapter / "adapter_model.safetensors").stat().st_size * 2
    record = request.record("gguf-lora", files={file_name: quant}, merge_base=None)
    with export_folder(request.out, needed, record) as folder:
        writer = GGUFWriter(folder / file_name, family.name)
        writer.add_type(GGUFType.ADAPTER)
        write_general(writer, {"name": (run.name,), **base_model(run)})
        writer.add_string("adapter.type", "lora")
        alpha = float(adapter.config["lora_alpha"])
        writer.add_float32("adapter.lora.alpha", alpha)
        for name, (a, b, scale) in sorted(adapter.pairs().items()):
            for side, values in (("A", a), ("B", b)):
                require_finite(f"{name} (lora_{side})", values, "in the adapter", "export an earlier checkpoint")
            # The rows of B are the layer's output rows, and change places as those do.
            b = to_gguf(family, config, name, b.float() * (scale * a.shape[0] / alpha))
            writer.add_tensor(f"{names[name]}.lora_a", encode(f"{name} A", a.float(), kind))
            writer.add_tensor(f"{names[name]}.lora_b", encode(f"{name} B", b, kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    size = (request.out / file_name).stat().st_size
    good(f"{file_name}: {len(names)} adapted layers, {size:,} bytes")
    note("this adapter runs on the plain base, not on the 4-bit base it was trained on: a merged export is closer")
    return request.out


def _gguf_names(family: Family, adapter: Adapter, layers: int) -> dict[str, str]:
    """GGUF name of each adapted tensor, by its transformers name."""
    if not adapter.has_deltas_only:
        raise InputMissingError(
            "the adapter has more than LoRA on weights (DoRA, biases, embeddings or whole tensors), "
            "which a GGUF adapter cannot hold",
            "merge it: --format gguf",
        )
    names = gguf.get_tensor_name_map(family.arch, layers)
    found = {}
    for name in adapter.changed:
        gguf_name = names.get_name(name, try_suffixes=(".weight",))
        if gguf_name is None or name in (HEAD, EMBEDDING):
            raise InputMissingError(f"a GGUF adapter cannot change {name}", "merge it: --format gguf")
        found[name] = gguf_name
    return found
