"""Other libraries' progress bars, kept out of logs."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from qdpo.console import is_interactive


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Bars of llmcompressor and compressed-tensors, which cannot be switched off, are drawn on a terminal only."""
    if is_interactive():
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield
