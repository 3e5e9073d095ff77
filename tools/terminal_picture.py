"""Draws what a command leaves in a terminal, as SVG: `python tools/terminal_picture.py OUT.svg COMMAND...`.

The command runs in a real terminal (tmux) of its own, in an empty folder and with an empty cache: it shows what a user
sees the first time, and no path of this machine.
"""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 112
LINES = 100


def screen_of(command: str, folder: Path) -> str:
    """What is on the screen when the command has ended, with its escape sequences for colours.

    Raises:
        RuntimeError: the command failed.
    """
    socket, done = ["tmux", "-L", "picture"], folder / ".exit-code"
    line = f"{command}; echo $? > {shlex.quote(str(done))}; sleep 60"
    options = ["-x", str(COLUMNS), "-y", str(LINES), "-c", str(folder), "-e", f"QDPO_CACHE={folder / '.cache'}"]
    subprocess.run([*socket, "new-session", "-d", *options, line], check=True)
    try:
        while not done.is_file():
            time.sleep(0.2)
        time.sleep(0.5)
        screen = subprocess.run(
            [*socket, "capture-pane", "-e", "-p"], check=True, capture_output=True, text=True
        ).stdout
    finally:
        subprocess.run([*socket, "kill-server"], check=False)
    if (code := done.read_text().strip()) != "0":
        raise RuntimeError(f"`{command}` ended with {code}:\n{screen}")
    return screen.rstrip("\n")


def draw(command: str, screen: str) -> str:
    """The SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    console.print(Text.assemble(("$ ", "green"), command))
    console.print(Text.from_ansi(screen), soft_wrap=True)
    return console.export_svg(title=command)


if __name__ == "__main__":
    wanted = shlex.join(sys.argv[2:])
    with tempfile.TemporaryDirectory() as scratch:
        Path(sys.argv[1]).write_text(draw(wanted, screen_of(wanted, Path(scratch))))
