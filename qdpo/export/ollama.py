"""`--format ollama`: a folder with a GGUF file and the Modelfile that makes it an Ollama model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from qdpo.console import note, say, warn
from qdpo.errors import UsageError
from qdpo.export.folder import generation_config
from qdpo.export.formats import Request
from qdpo.export.gguf.format import Batch, plan_batch
from qdpo.export.go_template import derive, stop_words
from qdpo.export.output import export_folder

MODELFILE = "Modelfile"

# Ollama's own defaults (repeat_penalty 1.1) change the distribution that was trained; published DPO models switch the
# penalties off, and so do we.
NEUTRAL = {"repeat_penalty": "1", "penalize_newline": "false"}
SAMPLING = ("temperature", "top_p", "top_k", "min_p")


def write_ollama(request: Request) -> Path:
    """Write GGUF and Modelfile.

    Raises:
        UsageError: more than one type.
        InputMissingError: the model cannot be converted.
        DiskError, OutputError: the export cannot be written.
    """
    if len(request.quants) > 1:
        raise UsageError(
            f"--quant {','.join(request.quants)}: an Ollama model has one file",
            "export the types one by one, with --out",
        )
    batch = plan_batch(request)
    (file_name,) = batch.files
    modelfile = modelfile_of(request, batch, file_name)
    record = request.record("ollama", files=batch.files, rounding=batch.rounding.record())
    with export_folder(request.out, batch.needed, record) as folder:
        batch.write(folder)
        (folder / MODELFILE).write_text(modelfile, "utf-8")
    say(f"to make it an Ollama model: ollama create {request.run.name} -f {request.out / MODELFILE}")
    return request.out


def modelfile_of(request: Request, batch: Batch, file_name: str) -> str:
    """The text of the Modelfile."""
    vocabulary = batch.vocabulary
    ends = [vocabulary.tokens[vocabulary.special[name]] for name in ("eos", "eot") if name in vocabulary.special]
    lines = [f"FROM ./{file_name}", ""]
    pieces = None
    if vocabulary.template is None:
        note("the tokenizer has no chat template: the Modelfile passes prompts through as they are")
        lines += ['TEMPLATE """{{ .Prompt }}"""', ""]
    else:
        tokenizer = AutoTokenizer.from_pretrained(request.run.tokenizer_files()[0].parent)
        tokenizer.chat_template = vocabulary.template
        bos = vocabulary.tokens[vocabulary.special["bos"]] if vocabulary.add_bos else ""
        pieces = derive(tokenizer, strip=bos)
        if pieces is None:
            warn(
                "the chat template cannot be written in Ollama's syntax: the Modelfile has no TEMPLATE, and Ollama "
                "chooses one by the template inside the GGUF; compare its prompts before you trust it"
            )
        elif pieces.before_system is None:
            note("the chat template has no system message: Ollama's SYSTEM is left out of prompts")
        lines += [f'TEMPLATE """{pieces.go()}"""', ""] if pieces else []
    lines += [f"PARAMETER {key} {value}" for key, value in parameters(request, batch).items()]
    lines += [f'PARAMETER stop "{_escaped(word)}"' for word in stop_words(pieces, ends)]
    if license := request.run.record["base"].get("license"):
        lines += ["", f'LICENSE """The base model\'s licence: {license}"""']
    return "\n".join(lines) + "\n"


def parameters(request: Request, batch: Batch) -> dict[str, Any]:
    """Sampling: no penalties, and what the base's generation_config.json sets."""
    settings = generation_config(request.run, batch.model.config)
    sampling = {key: settings[key] for key in SAMPLING if settings.get(key) is not None}
    return NEUTRAL | sampling


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"')
