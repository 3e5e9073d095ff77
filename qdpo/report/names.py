"""How the card speaks of the base, the data and the loss: by their public names."""

from __future__ import annotations

import re

from qdpo.config.schema import RunConfig
from qdpo.report import markdown as md
from qdpo.run.record import RunRecord, dig

EMBEDDED = "quickstart"
"""The name of the base model and of the pairs that ship inside qdpo."""

DPO_PAPER = "https://arxiv.org/abs/2305.18290"

LOSS_NAMES = {
    "sigmoid": f"[direct preference optimization (DPO)]({DPO_PAPER})",
    "hinge": "preference optimization with a hinge loss (SLiC)",
    "ipo": "identity preference optimization (IPO)",
    "robust": "robust DPO",
    "discopop": "DiscoPOP (DPO with a log-ratio modulated loss)",
    "sft": "supervised fine-tuning on the chosen completions",
}


def base_name(record: RunRecord) -> str:
    """The base's hub name, or the last component of its folder."""
    name = str(dig(record.run, "base", "name") or record.config.model.name)
    return md.one_line(name) if base_on_hub(record) else md.last_component(md.one_line(name))


def base_on_hub(record: RunRecord) -> bool:
    """Whether the base came from the hub: only then is there a commit."""
    name = str(dig(record.run, "base", "name") or record.config.model.name)
    return base_revision(record) is not None and not md.is_local(name)


def base_revision(record: RunRecord) -> str | None:
    """The base's hub commit (40 hex)."""
    revision = dig(record.run, "base", "revision")
    return revision if isinstance(revision, str) and re.fullmatch(r"[0-9a-f]{40}", revision) else None


def is_demonstration(record: RunRecord) -> bool:
    """Whether the base is the embedded demonstration model."""
    return str(dig(record.run, "base", "name") or record.config.model.name) == EMBEDDED


def base_link(record: RunRecord) -> str:
    """The base as Markdown, linked where it has a page."""
    name = base_name(record)
    if base_on_hub(record):
        return md.link(name, f"https://huggingface.co/{name}")
    if is_demonstration(record):
        return "qdpo's embedded demonstration model"
    return f"{md.code(name)} (a local folder)"


def dataset_name(record: RunRecord, part: str = "train") -> str:
    """The public name of the training (`train`) or held-out (`heldout`) pairs."""
    data = record.config.data
    configured = data.name if part == "train" else data.eval_name or data.name
    return md.public_name(dig(record.run, "data", part, "name") or configured)


def dataset_on_hub(name: str) -> bool:
    """Whether a public name is one of the hub's: a namespace and a name."""
    return name != EMBEDDED and "/" in name and not md.is_local(name)


def dataset_link(name: str) -> str:
    """A dataset as Markdown, linked where it has a page."""
    if dataset_on_hub(name):
        return md.link(name, f"https://huggingface.co/datasets/{name}")
    return "qdpo's embedded demonstration pairs" if name == EMBEDDED else f"{md.code(name)} (local)"


def method(config: RunConfig) -> str:
    """What the training is called."""
    names = config.loss.loss_type
    if len(names) > 1:
        return f"preference optimization with the losses {' + '.join(md.code(name) for name in names)}"
    return LOSS_NAMES.get(names[0], f"preference optimization with the loss {md.code(names[0])}")
