"""The libraries underneath: no telemetry, no chatter. What matters is said by qdpo itself."""

from __future__ import annotations

import logging
import os
import warnings

TELEMETRY = ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK")
VARIABLES = (*TELEMETRY, "TOKENIZERS_PARALLELISM", "WANDB_SILENT")
"""Environment variables that a run sets."""
# bitsandbytes looks for an optional kernel that qdpo switches off (see model/load.py: keep_weights_unpacked)
LOGGERS = ("bitsandbytes.backends.cpu.ops", "accelerate")
"""Loggers that a run lets speak of errors only."""


def quiet_environment() -> None:
    """What can be set before any of them is imported; costs nothing."""
    for name in TELEMETRY:
        os.environ[name] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*[Pp]aged.*", module="bitsandbytes.*")
    # tqdm, in a notebook without ipywidgets
    warnings.filterwarnings("ignore", message="IProgress not found")


def quiet_libraries() -> None:
    """Also silence transformers' own remarks and its bar for loading weights."""
    quiet_environment()
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
