"""Renewing what a run directory says of itself, whenever something in it has changed."""

from __future__ import annotations

from pathlib import Path

from qdpo import console
from qdpo.errors import QdpoError
from qdpo.report.card import CARD, write_card
from qdpo.report.page import PAGE, write_page


def refresh(run_dir: Path) -> None:
    """Render the card and the report page anew.

    The verb that has just done its work is not undone by a card that cannot be written: that is a warning.
    """
    try:
        write_card(run_dir)
        write_page(run_dir)
    except QdpoError as error:
        console.warn(f"{CARD} and {PAGE} of {run_dir} were not renewed: {error.message}")
