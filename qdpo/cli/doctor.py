"""`qdpo doctor`: what is here, what works, and what to install for the rest.

Whatever loads native code (torch, bitsandbytes) is tried in a child process: a library that kills its process, as one
built for another processor does, is then a finding and not the end of the report. Optional parts are looked up, never
imported.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qdpo import __version__, console, files
from qdpo.errors import UnavailableError
from qdpo.paths import cache_folder

HELP = (
    "Show versions, GPU, driver, compute type, disk and memory, and which optional parts are here. Exits 69 if qdpo "
    "cannot run, or cannot use the GPU that is here."
)

PROBE_SECONDS = 180
LOW_DISK_BYTES = 2 << 30

REQUIRED = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "trl",
    "datasets",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "pydantic",
    "pyyaml",
    "rich",
    "matplotlib",
)


@dataclass(frozen=True)
class Part:
    """A part that qdpo can use and does not need.

    Attributes:
        module: what Python imports.
        package: what pip installs.
        purpose: what it is for.
        install: the command that installs it.
    """

    module: str
    package: str
    purpose: str
    install: str


# Extras are those of pyproject.toml; the rest is installed under its own name.
OPTIONAL = (
    Part("triton", "triton", "fused GPU kernels", "pip install triton"),
    Part("flash_attn", "flash-attn", "model.attn_implementation: flash_attention_2", "pip install flash-attn"),
    Part("unsloth", "unsloth", "backend: unsloth", "pip install 'qdpo[unsloth]'"),
    Part("llmcompressor", "llmcompressor", "4-bit exports by AWQ", "pip install 'qdpo[awq]'"),
    Part("gguf", "gguf", "GGUF files", "pip install gguf"),
    Part("llama_cpp", "llama-cpp-python", "scoring GGUF exports", "pip install 'qdpo[verify]'"),
    Part("lm_eval", "lm-eval", "benchmarks", "pip install lm-eval"),
    Part("tensorboard", "tensorboard", "train.report_to: [tensorboard]", "pip install 'qdpo[tensorboard]'"),
    Part("wandb", "wandb", "train.report_to: [wandb]", "pip install 'qdpo[wandb]'"),
    Part("trackio", "trackio", "train.report_to: [trackio]", "pip install 'qdpo[trackio]'"),
    Part("pytest", "pytest", "the tests", "pip install 'qdpo[test]'"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Print the report; 0 when all that is here works together, 69 when something essential is broken."""
    report = examine()
    if args.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _show(report)
    for problem in report["problems"]:
        console.fail(UnavailableError(problem["message"], problem["hint"]))
    return 0 if report["ok"] else UnavailableError.exit_code


def examine() -> dict[str, Any]:
    """Everything the report says, as plain data."""
    versions = {"qdpo": __version__, "python": sys.version.split()[0]}
    versions |= {name: _version(name) or "" for name in REQUIRED}
    probed = _probe_in_child()
    problems = [*_missing(versions), *_outside_bounds(), *probed.pop("problems")]
    free = files.free_bytes(Path())
    return {
        "schema": 1,
        "ok": not problems,
        "problems": problems,
        "versions": {name: version or None for name, version in versions.items()},
        **probed,
        "disk": {"folder": _short(Path().absolute()), "free_bytes": free, "low": free < LOW_DISK_BYTES},
        "memory": _memory(),
        "optional": [_optional(part) for part in OPTIONAL],
        "hf_cache": _short(_hub_cache()),
        "kept_bases": _kept_bases(),
    }


# ---------------------------------------------------------------------------------------------- packages and versions


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _missing(versions: dict[str, str]) -> list[dict[str, str]]:
    gone = [name for name, version in versions.items() if not version]
    hint = "install qdpo again: `pip install .` in its checkout"
    return [_problem(f"not installed: {', '.join(gone)}", hint)] if gone else []


def _outside_bounds() -> list[dict[str, str]]:
    """Packages whose version is outside what qdpo declares; nothing is declared in a checkout without installation."""
    try:
        declared = importlib.metadata.requires("qdpo") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return []
    wrong = []
    for requirement in map(Requirement, declared):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _version(requirement.name)
        if found is not None and not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} (qdpo needs {requirement.specifier})")
    hint = "install qdpo again: `pip install .` in its checkout brings versions that work together"
    return [_problem(f"wrong version: {', '.join(wrong)}", hint)] if wrong else []


def _optional(part: Part) -> dict[str, Any]:
    return {**asdict(part), "present": _is_present(part.module), "version": _version(part.package)}


def _is_present(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


# ------------------------------------------------------------------------------------------ what the child finds out


def _probe_in_child() -> dict[str, Any]:
    """Device, compute type and the 4-bit trial, from a child process."""
    empty: dict[str, Any] = {"device": None, "cuda": None, "dtype": None, "nf4": {"ok": False, "detail": "not tried"}}
    empty["telemetry"] = {"qdpo": "none", "trl_and_hub": "unknown"}
    code = "from qdpo.cli.doctor import probe; probe()"
    try:
        child = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            env={**os.environ, "PYTHONPATH": _python_path()},
        )
    except subprocess.TimeoutExpired:
        what = f"torch and bitsandbytes gave no answer within {PROBE_SECONDS} s"
        return {**empty, "problems": [_problem(what, "is the machine overloaded, or the GPU driver stuck?")]}
    lines = child.stdout.strip().splitlines()
    if child.returncode == 0 and lines:
        return json.loads(lines[-1])
    said = child.stderr.strip().splitlines()
    reason = said[-1] if said else "no message"
    if child.returncode < 0:
        reason = f"killed by {signal.Signals(-child.returncode).name}"
    hint = "torch or bitsandbytes does not run on this machine: install builds for its processor and driver"
    return {**empty, "problems": [_problem(f"loading torch and bitsandbytes failed: {reason}", hint)]}


def _python_path() -> str:
    """Where the child finds this very qdpo, also when it runs from a checkout."""
    checkout = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join(part for part in (checkout, os.environ.get("PYTHONPATH", "")) if part)


def probe() -> None:
    """In the child: print device, compute type and the 4-bit trial as one line of JSON."""
    from qdpo import cuda
    from qdpo.hardware import choose_dtype, find_device

    # First of all, as in a run: what the hub's library reads from the environment, it reads when it is imported.
    telemetry = _library_telemetry()
    device = find_device()
    dtype, reason = choose_dtype("auto", device)
    stack = cuda.look()
    problems = [_problem(found.message, found.hint) for found in cuda.misfits(stack)]
    try:
        nf4 = {"ok": True, "detail": _try_nf4(device.torch, dtype)}
    except Exception as error:  # whatever goes wrong in there is the finding
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        nf4 = {"ok": False, "detail": what}
        hint = "install a bitsandbytes that matches torch and the driver; model.quantization: none trains without it"
        problems.append(_problem(f"4-bit layers do not work on this {device.kind}: {what}", hint))
    found = {
        "device": {
            "kind": device.kind,
            "name": device.name,
            "capability": list(device.capability) if device.capability else None,
            "memory_bytes": device.memory,
        },
        "cuda": {
            "summary": stack.describe(),
            "absence": None if stack.usable else cuda.absence(stack).message,
            **asdict(stack),
        },
        "dtype": {"compute": str(dtype).removeprefix("torch."), "reason": reason},
        "nf4": nf4,
        "telemetry": {"qdpo": "none", "trl_and_hub": telemetry},
        "problems": problems,
    }
    print(json.dumps(found))


def _try_nf4(device: Any, dtype: Any) -> str:
    """Quantize a small layer, multiply with it and go back through it; returns what was seen."""
    import torch
    from bitsandbytes.nn import Linear4bit

    torch.manual_seed(0)
    exact = torch.nn.Linear(256, 128, bias=False)
    layer = Linear4bit(256, 128, bias=False, compute_dtype=dtype, quant_type="nf4", compress_statistics=True)
    layer.load_state_dict(exact.state_dict())
    layer = layer.to(device)
    if layer.weight.dtype != torch.uint8:
        raise RuntimeError(f"the weight was not quantized: it is {layer.weight.dtype}")
    inputs = torch.randn(8, 256, dtype=dtype).to(device).requires_grad_()
    product = layer(inputs)
    product.float().square().sum().backward()
    if inputs.grad is None or not bool(torch.isfinite(inputs.grad).all()):
        raise RuntimeError("the gradient through a 4-bit layer is not finite")
    expected = inputs.detach().float().cpu() @ exact.weight.detach().T
    error = float((product.detach().float().cpu() - expected).norm() / expected.norm())
    # Rounding to 16 levels costs about 9 % on normal weights; much more means a wrong kernel.
    if not error < 0.2:
        raise RuntimeError(f"a 4-bit product is {error:.0%} off")
    return f"a 256 x 128 layer was quantized, multiplied and differentiated, {error:.1%} off the exact product"


def _library_telemetry() -> str:
    """Whether huggingface_hub, through which TRL reports too, would send anything from a run of qdpo."""
    from qdpo.libraries import quiet_libraries

    quiet_libraries()
    from huggingface_hub import constants

    return "off" if constants.HF_HUB_DISABLE_TELEMETRY else "on"


def _problem(message: str, hint: str) -> dict[str, str]:
    return {"message": message, "hint": hint}


# ------------------------------------------------------------------------------------------------------- the machine


def _memory() -> dict[str, int | None]:
    """Bytes of memory in the machine, what is available of them, and the limit of this container, where known."""
    from qdpo.hardware import machine_available

    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no limit is written as the word `max`
        limit = None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"total_bytes": total, "available_bytes": machine_available(), "limit_bytes": limit}


def _hub_cache() -> Path:
    """The hub's cache folder by its own rules, without importing it."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


def _kept_bases() -> list[dict[str, Any]]:
    """The bases that are kept in NF4, each hashed: a few seconds for one of 7B."""
    found = []
    for path in sorted(cache_folder("base").glob("*/base.json")):
        problems = files.manifest_problems(path.parent)
        found.append(
            {
                "folder": _short(path.parent),
                "bytes": files.size_of(path.parent),
                "problem": problems[0] if problems else None,
            }
        )
    return found


def _short(path: Path) -> str:
    """A path with the home folder as `~`, so that a report can be shared."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path != home and path.is_relative_to(home) else str(path)


# -------------------------------------------------------------------------------------------------------- the report


def _show(report: dict[str, Any]) -> None:
    """Print the report for a person; what is data for `--json` is text here, on stdout too."""
    lines = [("versions", _words(report["versions"]))]
    if device := report["device"]:
        capability = f", compute capability {'.'.join(map(str, device['capability']))}" if device["capability"] else ""
        lines.append(("device", f"{device['kind']}: {device['name']}{capability}, {_gib(device['memory_bytes'])}"))
        lines.append(("CUDA", report["cuda"]["summary"]))
        if report["cuda"]["absence"]:
            needed = "presets that are made for one need --allow-cpu here"
            lines.append(("GPU", f"none: {report['cuda']['absence']}; {needed}"))
        lines.append(("compute type", f"{report['dtype']['compute']}: {report['dtype']['reason']}"))
    lines.append(("4-bit NF4", ("works: " if report["nf4"]["ok"] else "does not work: ") + report["nf4"]["detail"]))
    lines.append(("memory", _memory_words(report["memory"])))
    low = ", little for a model and its checkpoints" if report["disk"]["low"] else ""
    lines.append(("disk", f"{_gib(report['disk']['free_bytes'])} free in {report['disk']['folder']}{low}"))
    lines.append(("hub cache", report["hf_cache"]))
    for kept in report["kept_bases"]:
        state = f"damaged, it will be made anew: {kept['problem']}" if kept["problem"] else "whole"
        lines.append(("NF4 base", f"{_gib(kept['bytes'])} in {kept['folder']}: {state}"))
    telemetry = report["telemetry"]["trl_and_hub"]
    remedy = " (set HF_HUB_DISABLE_TELEMETRY=1)" if telemetry == "on" else ""
    lines.append(("telemetry", f"qdpo has none; TRL's and the hub's in a run: {telemetry}{remedy}"))
    width = max(len(title) for title, _ in lines) + 2
    for title, value in lines:
        _print_wrapped(title.ljust(width), value)
    print("\noptional parts")
    for part in report["optional"]:
        state = f"here {part['version'] or ''}".strip() if part["present"] else f"missing: {part['install']}"
        print(f"  {part['module']:<14} {part['purpose']:<46} {state}")
    if report["ok"]:
        print("\neverything that training needs is here")


def _print_wrapped(title: str, value: str) -> None:
    import textwrap

    columns = max(60, shutil.get_terminal_size((120, 24)).columns)
    indent = " " * len(title)
    print(textwrap.fill(value, columns, initial_indent=title, subsequent_indent=indent, break_on_hyphens=False))


def _words(versions: dict[str, str | None]) -> str:
    return ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())


def _memory_words(memory: dict[str, int | None]) -> str:
    words = [_gib(memory["total_bytes"])]
    if memory["available_bytes"] is not None:
        words.append(f"{_gib(memory['available_bytes'])} available")
    if memory["limit_bytes"] is not None:
        words.append(f"limited to {_gib(memory['limit_bytes'])} for this container")
    return ", ".join(words)


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / (1 << 30):.1f} GiB"
