"""The card's code: how to use the adapter, and how to train it again."""

from __future__ import annotations

import json
from typing import Any

from qdpo.report import markdown as md
from qdpo.report import names
from qdpo.report.exports import usage_of_exports
from qdpo.run.record import RunRecord, dig


def how_to_use(record: RunRecord) -> str:
    """`## How to use`: the adapter in Python, loaded on the base as in training, and whatever exports there are."""
    parts = ["## How to use"]
    if not record.merged and (record.published is None or record.published.format == "adapter"):
        where = "Run this in the folder of this card, where `adapter/` is. " if record.published is None else ""
        lead = f"{where}Together with the base it needs the packages below (bitsandbytes only for the 4-bit base)."
        parts += [lead, md.block(_snippet(record), "python")]
    if record.published is None or record.published.format != "adapter":
        parts.append(usage_of_exports(record))
    return "\n\n".join(parts)


def reproduce(record: RunRecord) -> str:
    """`## Reproduce`: the command, and what it was run on."""
    command = record.run.get("command")
    parts = ["## Reproduce"]
    if command:
        shown = md.command_line(str(command))
        parts.append(md.block(shown, "bash"))
        if shown != md.one_line(command):
            parts.append("Local folders and files in the command are shown by their last component.")
    else:
        parts.append("The run recorded no command.")
    parts.append("\n".join(_identities(record)))
    return "\n\n".join(parts)


def _identities(record: RunRecord) -> list[str]:
    found = {
        "Base revision": names.base_revision(record),
        "Base weights (SHA-256)": dig(record.run, "base", "weights_sha256"),
        "Chat template (SHA-256)": dig(record.run, "tokenizer", "template_sha256"),
        "Training pairs (fingerprint)": dig(record.run, "data", "train", "fingerprint"),
        "Held-out pairs (fingerprint)": dig(record.run, "data", "heldout", "fingerprint"),
        "Adapter (SHA-256)": dig(record.run, "result", "adapter_sha256"),
    }
    lines = [f"- {title}: {md.code(value)}" for title, value in found.items() if value]
    if record.published is not None:
        return lines
    return ["- Settings: every one is in `config.yaml` beside this card", *lines]


def _snippet(record: RunRecord) -> str:
    imports = ["import torch", "from peft import PeftModel"]
    classes = ["AutoModelForCausalLM", "AutoTokenizer"]
    dtype = f"torch.{_dtype(record)}"
    options = [f"dtype={dtype}", 'device_map="auto"']
    quantization = record.run.get("quantization") or {}
    settings: list[str] = []
    if quantization.get("method") == "nf4":
        classes.append("BitsAndBytesConfig")
        settings = [
            "nf4 = BitsAndBytesConfig(",
            "    load_in_4bit=True,",
            '    bnb_4bit_quant_type="nf4",',
            f"    bnb_4bit_use_double_quant={bool(quantization.get('double_quant'))},",
            f"    bnb_4bit_compute_dtype={dtype},",
            ")",
        ]
        options.append("quantization_config=nf4")
    imports.append(f"from transformers import {', '.join(classes)}")
    where, revision = _base(record)
    adapter = _string(record.published.repo if record.published else "adapter")
    if names.is_demonstration(record):
        imports.insert(0, "from importlib.resources import files\n")
    return "\n".join(
        [
            *imports,
            "",
            f"base = {where}",
            *settings,
            "model = AutoModelForCausalLM.from_pretrained(",
            *(f"    {argument}," for argument in ("base", *revision, *options)),
            ")",
            f"model = PeftModel.from_pretrained(model, {adapter})",
            f"tokenizer = AutoTokenizer.from_pretrained({adapter})",
            "",
            *_prompt(record),
            "outputs = model.generate(**inputs, max_new_tokens=128)",
            'print(tokenizer.decode(outputs[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    )


def _base(record: RunRecord) -> tuple[str, list[str]]:
    """The base as a Python expression, and the argument that pins its revision."""
    if names.is_demonstration(record):
        return 'str(files("qdpo") / "assets" / "base")  # ships inside qdpo', []
    revision = names.base_revision(record) if names.base_on_hub(record) else None
    comment = "" if names.base_on_hub(record) else "  # the base was a local folder: put its path here"
    return f"{_string(names.base_name(record))}{comment}", [f"revision={_string(revision)}"] if revision else []


def _prompt(record: RunRecord) -> list[str]:
    has_template = record.config.data.template != "none" and dig(record.run, "tokenizer", "template_sha256")
    if not has_template:
        return ['inputs = tokenizer("The beginning of a text", return_tensors="pt").to(model.device)']
    return [
        'messages = [{"role": "user", "content": "Your question"}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ").to(model.device)",
    ]


def _dtype(record: RunRecord) -> str:
    found = dig(record.run, "dtype", "compute")
    return found if found in ("bfloat16", "float16", "float32") else "float32"


def _string(value: Any) -> str:
    """A Python string literal."""
    return json.dumps(str(value), ensure_ascii=True)
