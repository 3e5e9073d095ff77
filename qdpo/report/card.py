"""The model card: measured facts from the run directory's files, in the layout of the cards it stands beside."""

from __future__ import annotations

from pathlib import Path

from qdpo import files
from qdpo.report.facts import gather
from qdpo.report.front_matter import license_fields, metadata
from qdpo.report.templating import card_environment
from qdpo.run.record import Published

CARD = "README.md"

RESULTS = (
    ("Loss", "loss"),
    ("Rewards/chosen", "rewards/chosen"),
    ("Rewards/rejected", "rewards/rejected"),
    ("Rewards/accuracies", "rewards/accuracies"),
    ("Rewards/margins", "rewards/margins"),
    ("Logps/rejected", "logps/rejected"),
    ("Logps/chosen", "logps/chosen"),
    ("Logits/rejected", "logits/rejected"),
    ("Logits/chosen", "logits/chosen"),
)
"""Title and key of what a card reports about the held-out pairs, in the order of the seeds' cards."""

COLUMNS = ("Training Loss", "Epoch", "Step", "Validation Loss", *(title for title, _ in RESULTS[1:]))
"""The columns of the training-results table, as transformers and TRL name them."""

VERSIONS = {
    "qdpo": "qdpo",
    "python": "Python",
    "peft": "PEFT",
    "trl": "TRL",
    "transformers": "Transformers",
    "torch": "Pytorch",
    "bitsandbytes": "bitsandbytes",
    "accelerate": "Accelerate",
    "datasets": "Datasets",
    "tokenizers": "Tokenizers",
    "safetensors": "Safetensors",
}


def render_card(run_dir: Path, published: Published | None = None) -> str:
    """The model card of a run as Markdown, from the files in its run directory alone.

    Args:
        run_dir: the run directory.
        published: the repository that the card is for; None for the run directory itself.

    Raises:
        InputMissingError: the folder is not a run directory, or a file in it cannot be understood.
    """
    facts = gather(run_dir, published)
    found = {"qdpo": facts.record.qdpo, **(facts.record.versions or {})}
    return (
        card_environment()
        .get_template("card.md.jinja")
        .render(
            run=facts,
            config=facts.config,
            metadata=metadata(facts),
            license=license_fields(facts.record.base.license),
            results=RESULTS,
            columns=COLUMNS,
            versions=[(title, found[key]) for key, title in VERSIONS.items() if found.get(key)],
        )
    )


def write_card(run_dir: Path) -> None:
    """Write the card to `README.md` in the run directory.

    Raises:
        InputMissingError: as `render_card`.
        DiskError, OutputError: the file cannot be written.
    """
    files.atomic_write(run_dir / CARD, render_card(run_dir))
