"""The card's sections on exports: how each is used, how it was made, and what its verification found."""

from __future__ import annotations

import shlex
from typing import Any

from qdpo.export.verify.report import card_section
from qdpo.report import markdown as md
from qdpo.run.record import RunRecord, dig
from qdpo.verdicts.measured import read_exports

TITLES = {
    "safetensors": "Merged model",
    "awq": "Merged model, 4-bit AWQ",
    "gguf": "GGUF for llama.cpp",
    "gguf-lora": "Adapter as GGUF, beside a GGUF of the base",
    "ollama": "Ollama",
}


def usage_of_exports(record: RunRecord) -> str:
    """How to use each export that is there; how to make one where there is none."""
    exports = shown(record)
    if not exports:
        return (
            "For other programs the adapter is merged into its base: "
            "`qdpo merge-export --run DIR --format safetensors` (transformers, vLLM), `gguf` (llama.cpp), `awq` "
            "(4 bits), `ollama`."
        )
    return "\n\n".join(
        f"### {TITLES.get(name, md.text(name))}\n\n{_usage(record, name, exports[name])}" for name in exports
    )


def shown(record: RunRecord) -> dict[str, dict[str, Any]]:
    """The exports that the card speaks of: all, or the published one."""
    found = read_exports(record.folder)
    if record.published is None:
        return found
    return {name: entry for name, entry in found.items() if name == record.published.format}


def verification(record: RunRecord) -> str:
    """`## Exports and their verification`: what was made, from what, and the figures of `qdpo verify`."""
    exports = shown(record)
    if not exports:
        return ""
    parts = ["## Exports and their verification"]
    for name, entry in exports.items():
        lines = [f"Made by {md.code(_command(name, entry))}."]
        if entry.get("verify"):
            section = _section(entry["verify"])
        else:
            section = f"### Export: {md.text(name)}\n\nNot verified: nothing is known of what it kept of the training."
        parts.append("\n\n".join([section, *lines]))
    return "\n\n".join(parts)


def _section(verify: dict[str, Any]) -> str:
    try:
        section = card_section(verify)
    except (KeyError, TypeError, AttributeError):
        return f"### Export: {md.text(verify.get('format'))}\n\nIts verify.json is of another version of qdpo."
    # line by line, so that the tables stay tables
    return "\n".join(md.without_folders(line) for line in section.strip().splitlines())


def _usage(record: RunRecord, name: str, entry: dict[str, Any]) -> str:
    folder = f"export/{name}"
    files = list(entry.get("files") or {})
    model = md.one_line(record.name)
    if record.published is not None:
        return _published_usage(record.published.repo, name, files, model)
    if name in ("safetensors", "awq"):
        return md.block(_python(folder), "python") + "\n\nor " + md.code(f"vllm serve {folder}")
    if name == "ollama":
        return md.block(f"ollama create {model} -f {folder}/Modelfile\nollama run {model}", "bash")
    if name == "gguf-lora":
        lines = [f"llama-cli -m BASE.gguf --lora {folder}/{shlex.quote(file)}" for file in files]
    else:
        lines = [f"llama-cli -m {folder}/{shlex.quote(file)}" for file in files]
    return md.block("\n".join(lines), "bash")


def _published_usage(repo: str, name: str, files: list[str], model: str) -> str:
    if name in ("safetensors", "awq"):
        return md.block(_python(repo), "python") + "\n\nor " + md.code(f"vllm serve {repo}")
    download = f"hf download {repo} --local-dir {model}"
    if name == "ollama":
        return md.block(f"{download}\nollama create {model} -f {model}/Modelfile\nollama run {model}", "bash")
    option = "-m BASE.gguf --lora" if name == "gguf-lora" else "-m"
    lines = [f"llama-cli {option} {model}/{shlex.quote(file)}" for file in files]
    return md.block("\n".join([download, *lines]), "bash")


def _python(where: str) -> str:
    return "\n".join(
        [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained("{where}", dtype="auto", device_map="auto")',
            f'tokenizer = AutoTokenizer.from_pretrained("{where}")',
        ]
    )


def _command(name: str, entry: dict[str, Any]) -> str:
    words = ["qdpo", "merge-export", "--run", "DIR", "--format", name]
    if entry.get("merge_base") == "original":
        words += ["--merge-base", "original"]
    if name == "safetensors" and isinstance(entry.get("dtype"), str) and entry["dtype"] != dig(entry, "base", "dtype"):
        words += ["--dtype", entry["dtype"]]
    kinds = [kind for kind in (entry.get("files") or {}).values() if isinstance(kind, str)]
    if kinds:
        words += ["--quant", ",".join(kind.lower() for kind in kinds)]
    return shlex.join(words)
