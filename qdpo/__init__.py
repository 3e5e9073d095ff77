"""qdpo: direct preference optimization on a 4-bit base, on one GPU."""

__version__ = "0.1.0"
