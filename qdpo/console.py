"""Talking to the user: data on stdout, talk on stderr; no meaning is carried by colour alone.

Access tokens are taken out of all talk. Nothing that is printed is read as markup, and no control character that comes
from data or a name reaches the terminal. `NO_COLOR`, `CI` and output that is not a terminal give plain lines. rich is
imported on first use, so that `qdpo --help` stays fast. In a notebook both go to the cell's stdout: there stderr means
that something is wrong.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from qdpo.errors import QdpoError
from qdpo.foreign import shortened, visible

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.live import Live
    from rich.segment import Segment


_silent = False
_printed_at = time.monotonic()


@cache
def talk() -> Console:
    """The console for progress and remarks (stderr)."""
    return _console(stderr=True)


@cache
def out() -> Console:
    """The console for results that another program may read (stdout)."""
    return _console(stderr=False)


def _console(stderr: bool) -> Console:
    from rich.console import Console
    from rich.segment import Segment

    from qdpo import notebook

    class OurConsole(Console):
        def on_broken_pipe(self) -> None:
            """Leave it to the command line, which knows the exit code; rich would end with 1."""
            raise BrokenPipeError

        def print(self, *objects: Any, **options: Any) -> None:
            """As rich's, and the time is noted."""
            global _printed_at
            super().print(*objects, **options)
            _printed_at = time.monotonic()

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            """As rich's, without what a terminal would obey; a display's own cursor moves are no text."""
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    if notebook.is_here():
        return OurConsole(highlight=False, markup=False, soft_wrap=True, width=notebook.WIDTH, force_jupyter=False)
    stream = sys.stderr if stderr else sys.stdout
    plain = not stream.isatty()
    # A pipe or a log file has no width: a fixed, generous one keeps every message on its own line.
    width = 160 if plain else None
    return OurConsole(stderr=stderr, highlight=False, markup=False, soft_wrap=plain, width=width, quiet=_silent)


def silence() -> None:
    """Print nothing from now on but errors: for the processes beside the one that speaks for all."""
    global _silent
    _silent = True
    talk.cache_clear()
    out.cache_clear()


def is_interactive() -> bool:
    """Whether live displays make sense: stderr is a terminal, and this is neither a CI job nor a notebook."""
    from qdpo import notebook

    return sys.stderr.isatty() and not os.environ.get("CI") and not notebook.is_here()


def can_redraw() -> bool:
    """Whether a line can be drawn in place on stderr."""
    return is_interactive() and not talk().is_dumb_terminal


def live(draw: Callable[[], RenderableType], *, transient: bool = False) -> Live:
    """A display at the bottom of the terminal, above which appears what others print meanwhile.

    Args:
        draw: what it shows; called four times a second.
        transient: leave nothing of it behind.
    """
    from rich.live import Live

    return Live(
        console=talk(),
        get_renderable=draw,
        refresh_per_second=4,
        transient=transient,
        # data on a redirected stdout is left alone
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=True,
    )


def silent_for() -> float:
    """Seconds since something was last printed."""
    return time.monotonic() - _printed_at


def say(message: str) -> None:
    """One line of talk, printed as it is."""
    from rich.text import Text

    talk().print(Text(_fit(message)))


def good(message: str) -> None:
    """One line for a check that passed."""
    _say_with("ok ", "green", message)


def note(message: str) -> None:
    """A choice or a change that the user should know of, with its reason."""
    _say_with("note: ", "cyan", message)


def warn(message: str) -> None:
    """Something that the user may want to act on."""
    _say_with("warning: ", "yellow", message)


def fail(error: QdpoError) -> None:
    """An error and its way out, as `error: ...` and `hint: ...`."""
    talk().quiet = False
    _say_with("error: ", "bold red", error.message)
    if (details := error.details()) is not None:
        talk().print(details)
    if error.hint:
        _say_with("hint: ", "bold", error.hint)


def _say_with(prefix: str, style: str, message: str) -> None:
    # One print per line: a live display redraws between prints and would lose the prefix.
    from rich.text import Text

    talk().print(Text.assemble((prefix, style), _fit(message)))


def _fit(message: str) -> str:
    from qdpo.redact import redact

    return visible(shortened(redact(message)))
