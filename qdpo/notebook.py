"""Showing things where there is no terminal but a notebook: a display that redraws, pictures, a small page."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 110
"""Columns of what is drawn in a cell's output."""

PRE = "<pre style='white-space:pre;overflow-x:auto;line-height:1.25;font-family:monospace'>{code}</pre>"


def is_here() -> bool:
    """Whether this process is a notebook's kernel."""
    shell = sys.modules.get("IPython")
    found = shell.get_ipython() if shell is not None else None
    return type(found).__name__ in ("ZMQInteractiveShell", "Shell")  # Jupyter's, and Colab's


class Live:
    """A display in a cell's output that is drawn anew, twice a second and whenever `refresh` is called.

    It is used as rich's `Live`, whose own display in notebooks needs ipywidgets.

    Args:
        get_renderable: what to draw.
    """

    def __init__(self, get_renderable: Callable[[], RenderableType]) -> None:
        self._get_renderable = get_renderable
        self._ended = threading.Event()
        self._drawing = threading.Lock()
        self._thread = threading.Thread(target=self._redraw, name="notebook display", daemon=True)

    def start(self, refresh: bool = True) -> None:
        """Show it; it is drawn anyway."""
        from IPython.display import display

        self._handle = display(self._drawn(), display_id=True)
        self._thread.start()

    def refresh(self) -> None:
        """Draw it now."""
        with self._drawing:
            self._handle.update(self._drawn())

    def stop(self) -> None:
        """Draw it for the last time."""
        self._ended.set()
        self._thread.join()
        self.refresh()

    def _redraw(self) -> None:
        while not self._ended.wait(0.5):
            with contextlib.suppress(RuntimeError):  # a table that grows while it is drawn; the next time is soon
                self.refresh()

    def _drawn(self) -> object:
        from IPython.display import HTML
        from rich.console import Console

        console = Console(file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False, force_terminal=True)
        console.print(self._get_renderable())
        return HTML(console.export_html(inline_styles=True, code_format=PRE))


def show_images(files: Sequence[Path]) -> None:
    """Show PNG files, in a notebook; elsewhere nothing."""
    if is_here():
        from IPython.display import Image, display

        for file in files:
            display(Image(str(file)))


def page(title: str, rows: Mapping[str, str], images: Sequence[Path]) -> str:
    """A title, a table of names and values, and PNG files, as one piece of HTML."""
    cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
    pictures = "".join(
        f'<img alt="{html.escape(file.stem)}" style="max-width:32%" '
        f'src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}">'
        for file in images
    )
    return f"<b>{html.escape(title)}</b><table>{cells}</table>{pictures}"
