"""What the hub's client downloads, told as all other work is; its own bars would be drawn on a terminal only."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any

from huggingface_hub.utils import tqdm

from qdpo.progress import Progress


@contextlib.contextmanager
def telling(name: str) -> Iterator[type[tqdm]]:
    """The class of bars for a download, which count for one line instead of drawing their own.

    Args:
        name: of what is downloaded.
    """
    with Progress(f"downloading {name}", None) as progress:

        class Bar(tqdm):
            """A bar that is not drawn, and that counts although transformers has switched the hub's bars off."""

            def __init__(self, *args: Any, **options: Any) -> None:
                self._of_bytes, self._came = options.get("unit") == "B", options.get("initial") or 0
                super().__init__(*args, **(options | {"file": io.StringIO(), "disable": False}))

            def display(self, *args: Any, **options: Any) -> None:
                """Draw nothing."""

            def refresh(self, *args: Any, **options: Any) -> bool | None:
                """The client has learned of another file."""
                self._tell()
                return super().refresh(*args, **options)

            def update(self, n: float | None = 1) -> bool | None:
                """Count."""
                self._came += n or 0
                told = super().update(n)
                self._tell()
                return told

            def _tell(self) -> None:
                # there may be two: of bytes that came, and of bytes that were written
                if self._of_bytes and getattr(self, "total", None):
                    progress.total = max(progress.total or 0, int(self.total))
                    progress.done = max(progress.done, int(self._came))

        yield Bar
