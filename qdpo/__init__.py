"""qdpo: direct preference optimization on a 4-bit base, on one GPU."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qdpo.compat.trl import accelerate as accelerate

__version__ = "0.1.0"

__all__ = ["__version__", "accelerate"]


def __getattr__(name: str) -> Any:
    # `import qdpo` stays light: torch is imported when something needs it
    if name == "accelerate":
        from qdpo.compat.trl import accelerate

        return accelerate
    raise AttributeError(f"module 'qdpo' has no attribute {name!r}")
