"""After the last stage: what the trained model's layers are given, for exports that round with feedback."""

from __future__ import annotations

import gc

import torch

from qdpo import console
from qdpo.errors import QdpoError
from qdpo.hardware import is_out_of_memory
from qdpo.training.stages.state import RunState

SHARE = 8
"""Moments are taken of one in so many of the tokens that the run was trained on, so that they cost it little."""

FEWEST = 1024
"""Of fewer tokens than this they would say too little."""


def keep_moments(run: RunState, trained_on: int) -> None:
    """Take the moments of the layers' inputs while the device is at hand, and keep them beside the adapter.

    A finished run needs none: what goes wrong here is told of, and `qdpo merge-export` can take them later.

    Args:
        run: finished.
        trained_on: tokens that the training has seen.
    """
    from qdpo.export.moments import TOKENS, take_moments
    from qdpo.export.source import load_run

    tokens = min(TOKENS, max(FEWEST, trained_on // SHARE))
    later = "qdpo merge-export --rounding feedback takes them"
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        moments = take_moments(load_run(run.folder), tokens)
    except QdpoError as error:
        console.warn(f"no moments of the layers' inputs are kept: {error.message}; {later}")
        return
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        console.warn(f"no moments of the layers' inputs are kept: out of memory; {later}")
        return
    console.good(
        f"moments of the inputs of {len(moments.names)} layers, {moments.about.tokens:,} tokens, "
        f"{moments.path.stat().st_size / 1e6:.1f} MB: exports keep what was trained by them"
    )
