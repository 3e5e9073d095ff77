"""The mistakes a user can make, each with its exit code (BSD sysexits) and a way out.

An error says what is wrong, where, and how many; `hint` says what to do about it. `qdpo.cli.main` prints both and
exits; a `QdpoError` never shows a traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdpo.foreign import shortened, visible

if TYPE_CHECKING:
    from rich.console import RenderableType


class QdpoError(Exception):
    """A failure that is explained to the user; as text, it says the hint too.

    Args:
        message: what happened, where, how many.
        hint: the way out, in one or two sentences, in words of the command line: `--run-dir` is `run_dir=` in Python.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def details(self) -> RenderableType | None:
        """What is shown between message and hint, such as a table; None for most."""
        return None

    def __str__(self) -> str:
        # a message may quote names and other programs, however long these are
        message = visible(shortened(self.message))
        return f"{message}\nhint: {visible(shortened(self.hint))}" if self.hint else message


class UsageError(QdpoError):
    """The command line cannot be understood (EX_USAGE)."""

    exit_code = 64


class DataError(QdpoError):
    """The preference data cannot be used (EX_DATAERR)."""

    exit_code = 65


class InputMissingError(QdpoError):
    """A file, folder, model or dataset is not there or cannot be read (EX_NOINPUT)."""

    exit_code = 66


class UnavailableError(QdpoError):
    """Something that the run needs is not to be had: a hub, a package, a device (EX_UNAVAILABLE)."""

    exit_code = 69


class TrainingError(QdpoError):
    """Training stopped because going on would be wrong: a broken invariant, a non-finite value (EX_SOFTWARE)."""

    exit_code = 70


class MemoryShortageError(QdpoError):
    """Memory ran out, and nothing is left that could be made smaller (EX_OSERR)."""

    exit_code = 71


class OutputError(QdpoError):
    """The output cannot be created: a foreign directory, no permission (EX_CANTCREAT)."""

    exit_code = 73


class DiskError(QdpoError):
    """Writing failed, most often because the disk is full (EX_IOERR)."""

    exit_code = 74


class BusyError(QdpoError):
    """Another process works in the same run directory (EX_TEMPFAIL)."""

    exit_code = 75


class ConfigError(QdpoError):
    """A preset, a config file or an override is wrong (EX_CONFIG)."""

    exit_code = 78


def first_line(error: BaseException, limit: int | None = None) -> str:
    """What another library's error says, as part of a message of ours: its first line, or its type where it has none.

    Args:
        error: the library's.
        limit: characters at the most; None for all.
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:limit]
