"""The formats that a run can be exported to. Adding one is adding a line here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qdpo.export.request import Request


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        about: what it is for, in a few words.
        where: module and function that write it; imported when it is used.
    """

    about: str
    where: str

    def write(self, request: Request) -> Path:
        """Write the export; returns the folder."""
        module, function = self.where.split(":")
        writer: Callable[[Request], Path] = getattr(importlib.import_module(module), function)
        return writer(request)


FORMATS = {
    "safetensors": Format("transformers, vLLM, TGI", "qdpo.export.folder:write_safetensors"),
    "gguf": Format("llama.cpp", "qdpo.export.gguf.format:write_gguf"),
    "gguf-lora": Format("the adapter alone, for llama.cpp", "qdpo.export.gguf.lora:write_gguf_lora"),
    "awq": Format("4 bits, calibrated on the run's pairs: vLLM", "qdpo.export.awq.format:write_awq"),
    "ollama": Format("GGUF and Modelfile", "qdpo.export.ollama:write_ollama"),
}
