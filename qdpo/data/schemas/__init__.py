"""The known shapes of preference datasets: by what each is known, and how a row of it is read."""

from __future__ import annotations

from qdpo.data.schemas.columns import COLUMNS
from qdpo.data.schemas.judged import JUDGED_FORMATS
from qdpo.data.schemas.labelled import LABELLED_FORMATS
from qdpo.data.schemas.scored import SCORED_FORMATS
from qdpo.data.schemas.sentences import SENTENCES
from qdpo.data.schemas.services import SERVICE_FORMATS
from qdpo.data.schemas.shape import Format

FORMATS: tuple[Format, ...] = (
    *SERVICE_FORMATS,
    *LABELLED_FORMATS,
    *COLUMNS,
    *SCORED_FORMATS,
    *JUDGED_FORMATS,
    *SENTENCES,
)
"""All of them, the more specific one of two first."""
BY_NAME = {format.name: format for format in FORMATS}
