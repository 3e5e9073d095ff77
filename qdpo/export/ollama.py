"""`--format ollama`: a folder with a GGUF file and the Modelfile that makes it an Ollama model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf import TokenType
from transformers import AutoTokenizer

from qdpo.console import note, say, warn
from qdpo.errors import UsageError
from qdpo.export.folder import generation_config
from qdpo.export.formats import Request
from qdpo.export.gguf.format import Batch, plan_batch
from qdpo.export.gguf.vocabulary import Vocabulary
from qdpo.export.go_template import derive, stop_words
from qdpo.export.output import export_folder

MODELFILE = "Modelfile"

# A penalty changes the distribution that was trained. Versions of Ollama differ in their own default (1.1, later 1).
NEUTRAL = {"repeat_penalty": "1"}
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
    settings = generation_config(request.run, batch.model.config)
    ends = stops_of(vocabulary, settings)
    special = {t for t, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind is TokenType.CONTROL}
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
                "the chat template cannot be written in Ollama's syntax: the Modelfile has no TEMPLATE. Ollama renders "
                "the template inside the GGUF itself, older versions put a known one that resembles it in its place: "
                "compare its prompts before you trust it"
            )
        elif pieces.system == "nowhere":
            note("the chat template has no system message: Ollama's SYSTEM is left out of prompts")
        for told in pieces.notes if pieces else ():
            warn(told)
        lines += [f'TEMPLATE """{pieces.go()}"""', ""] if pieces else []
    lines += [f"PARAMETER {key} {value}" for key, value in parameters(settings).items()]
    lines += [f'PARAMETER stop "{_escaped(word)}"' for word in stop_words(pieces, ends, special)]
    if license := request.run.record["base"].get("license"):
        lines += ["", f'LICENSE """The base model\'s licence: {license}"""']
    return "\n".join(lines) + "\n"


def stops_of(vocabulary: Vocabulary, settings: dict[str, Any]) -> list[str]:
    """The tokens that end a turn or a text, each once."""
    stops = settings.get("eos_token_id")
    listed = stops if isinstance(stops, list) else [] if stops is None else [stops]
    named = [vocabulary.special[name] for name in ("eos", "eot") if name in vocabulary.special]
    return list(dict.fromkeys(vocabulary.tokens[number] for number in [*named, *listed]))


def parameters(settings: dict[str, Any]) -> dict[str, Any]:
    """Sampling: no penalties, and what the base's generation_config.json sets."""
    sampling = {key: settings[key] for key in SAMPLING if settings.get(key) is not None}
    return NEUTRAL | sampling


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"')
