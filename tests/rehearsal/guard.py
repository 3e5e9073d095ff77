"""Compiling the device guard, and loading it before torch."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")


def torch_folder() -> Path:
    """Where torch is installed, without importing it."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def compiler() -> str | None:
    """A C++ compiler, None where there is none."""
    return shutil.which(os.environ.get("CXX", "c++"))


def build(folder: Path) -> Path:
    """Compile the guard against the installed torch.

    Args:
        folder: where the library goes.

    Raises:
        subprocess.CalledProcessError: it does not compile; the compiler's words are in `stderr`.
    """
    include = torch_folder() / "include"
    library = folder / "guard.so"
    folders = [include, include / "torch" / "csrc" / "api" / "include"]
    command = [str(compiler()), "-O1", "-shared", "-fPIC", "-std=c++20", *(f"-I{path}" for path in folders)]
    subprocess.run([*command, str(SOURCE), "-o", str(library)], check=True, capture_output=True, text=True)
    return library


def load(library: Path) -> None:
    """Register the device; torch asks for its CUDA once, so this comes before torch is imported."""
    assert "torch" not in sys.modules
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_folder() / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
