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
            """A bar that is not drawn; what counts bytes is told."""

            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **(options | {"file": io.StringIO(), "disable": False}))

            def display(self, *args: Any, **options: Any) -> None:
                """Draw nothing; the client refreshes its bar when it learns of another file."""
                self._tell()

            def update(self, n: float | None = 1) -> bool | None:
                """Count."""
                told = super().update(n)
                self._tell()
                return told

            def _tell(self) -> None:
                # there may be two: of bytes that came, and of bytes that were written
                # tqdm refreshes a bar before it is whole
                if getattr(self, "unit", None) == "B" and self.total:
                    progress.total = max(progress.total or 0, int(self.total))
                    progress.done = max(progress.done, self.n)

        yield Bar
