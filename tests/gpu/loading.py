"""Loading a base in NF4 from its shards: what comes out, and what it takes on the way."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from gpu.memory import free_up, host_peak
from safetensors import safe_open

from qdpo.config.resolve import resolve
from qdpo.hardware import Device, choose_dtype
from qdpo.model.load import NF4_BLOCKSIZE, load_base
from qdpo.model.nf4 import Quantization
from qdpo.planner.calibrate import tensor_bytes
from qdpo.planner.cards import card_of
from qdpo.planner.find import find_base
from qdpo.planner.parts import ADAPTER, host_loading
from qdpo.planner.plays import plays_for


def load_nf4(folder: Path, device: Device, compared: int) -> dict[str, Any]:
    """Load, measure, and compare some layers with their stored weights and with what an export takes them for.

    Args:
        folder: the base.
        device: where to.
        compared: layers of each projection that are compared.

    Returns:
        Bytes on device and host, measured and planned; NF4's rounding error (root mean square, relative); the largest
        difference between the loaded weights and those that `qdpo merge-export` would start from.
    """
    from bitsandbytes.functional import dequantize_4bit

    config = resolve("garrulus-a40", [f"model.name={folder}"]).config
    free_up(device.torch)
    begin = time.monotonic()
    with host_peak() as host:
        base = load_base(config.model, device)
    seconds = time.monotonic() - begin
    on_card = device.kind == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_card else 0
    b = choose_dtype("auto", device)[0].itemsize
    stored = Quantization("nf4", frozenset(base.quantized), base.load_dtype, True, NF4_BLOCKSIZE)
    wanted = [name for name in base.quantized if int(name.split("layers.")[1].split(".")[0]) < compared]
    error, gap = 0.0, 0.0
    for name in wanted:
        weight: Any = base.model.get_submodule(name).weight
        values = dequantize_4bit(weight.data, weight.quant_state).float().cpu()
        original = read(folder, f"{name}.weight")
        error = max(error, float((values - original.float()).norm() / original.float().norm()))
        gap = max(gap, float((values - stored.as_trained(f"{name}.weight", original)).abs().max()))
    planned = plays_for(find_base(str(folder)), config, card_of(device)).model
    shape, static = planned.shape, planned.static
    return {
        "seconds": seconds,
        "layers_in_4_bits": len(base.quantized),
        "rounding_error": error,
        "export_difference": gap,
        "tensor_bytes": tensor_bytes(base.model),
        "tensor_bytes_planned": sum(size for kind, size in static.items() if kind != ADAPTER),
        "peak_bytes": peak,
        "host_bytes": host.peak,
        "host_bytes_planned": round(sum(host_loading(shape, static, "nf4", b, cpu=not on_card).values())),
        "stored_bytes": 2 * shape.parameters,
    }


def read(folder: Path, name: str) -> torch.Tensor:
    """A tensor as it is stored."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as stream:
            if name in stream.keys():  # noqa: SIM118 - the file is no mapping
                return stream.get_tensor(name)
    raise KeyError(name)
