"""What a call borrows of the process that it runs in, and gives back."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from qdpo.allocator import expand_segments, return_freed_blocks
from qdpo.libraries import LOGGERS, VARIABLES, quiet_environment


@contextlib.contextmanager
def borrowed() -> Iterator[None]:
    """The libraries underneath without telemetry and chatter inside the block, and as they were after it.

    Environment variables, log levels and warning filters are put back, and memory that nothing refers to is given
    back to the GPU. What stays: the settings of the allocators, which they take once (`qdpo.allocator`), and the states
    of random number generators.
    """
    variables = {name: os.environ.get(name) for name in VARIABLES}
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    was_loaded = "transformers" in sys.modules
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    said = _transformers() if was_loaded else (logging.WARNING, True)
    try:
        with warnings.catch_warnings():
            quiet_environment()
            expand_segments()
            return_freed_blocks()
            yield
    finally:
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if "transformers" in sys.modules:
            _tell_transformers(*said)
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and threads is not None:
            torch.set_num_threads(threads)
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()  # of one call, not of all since the process began


def _transformers() -> tuple[int, bool]:
    from transformers import logging as theirs

    return theirs.get_verbosity(), theirs.is_progress_bar_enabled()


def _tell_transformers(verbosity: int, bar: bool) -> None:
    from transformers import logging as theirs

    theirs.set_verbosity(verbosity)
    (theirs.enable_progress_bar if bar else theirs.disable_progress_bar)()
