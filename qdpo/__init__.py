"""qdpo: direct preference optimization on a 4-bit base, on one GPU.

>>> import qdpo
>>> run = qdpo.train("quickstart", {"train.max_steps": 50})  # doctest: +SKIP
>>> run.export("gguf", quant="q4_k_m").verify()  # doctest: +SKIP
"""

import importlib
from typing import TYPE_CHECKING, Any

from qdpo.errors import QdpoError

if TYPE_CHECKING:
    from qdpo.api.config import Config
    from qdpo.api.exporting import Export
    from qdpo.api.pairing import generate_answers, pairs_from_ratings
    from qdpo.api.pairs import load_pairs
    from qdpo.api.planning import plan
    from qdpo.api.run import Run
    from qdpo.api.selecting import select_pairs
    from qdpo.api.training import Interrupted, train
    from qdpo.compat.trl import accelerate

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Export",
    "Interrupted",
    "QdpoError",
    "Run",
    "__version__",
    "accelerate",
    "generate_answers",
    "load_pairs",
    "pairs_from_ratings",
    "plan",
    "select_pairs",
    "train",
]

# `import qdpo` stays light: a name's module, and torch where it needs it, is imported when the name is used.
_HOMES = {
    "Config": "qdpo.api.config",
    "Export": "qdpo.api.exporting",
    "Interrupted": "qdpo.api.training",
    "Run": "qdpo.api.run",
    "accelerate": "qdpo.compat.trl",
    "generate_answers": "qdpo.api.pairing",
    "load_pairs": "qdpo.api.pairs",
    "pairs_from_ratings": "qdpo.api.pairing",
    "plan": "qdpo.api.planning",
    "select_pairs": "qdpo.api.selecting",
    "train": "qdpo.api.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qdpo' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
