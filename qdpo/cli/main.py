"""The `qdpo` command: finds the verb, runs it, and turns failures into messages and exit codes.

A verb is a module with `HELP` (what `qdpo VERB --help` says), `add_arguments(parser)` and `run(args) -> exit code`.
Only the chosen verb's module is imported, and nothing heavy before its `run`.

Exit codes: 0 done; 1 an export is not good enough; 64 usage; 65 data; 66 input missing; 69 unavailable; 70 internal or
training error; 73 output; 74 disk; 75 busy; 78 configuration; 130 interrupted (SIGINT); 141 the reader of a pipe went
away; 143 stopped by SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from qdpo import __version__, console
from qdpo.errors import QdpoError, UsageError
from qdpo.libraries import quiet_environment

EX_SOFTWARE = 70
EX_INTERRUPTED = 130
EX_PIPE = 141

Run = Callable[[argparse.Namespace], int]


@dataclass(frozen=True)
class Verb:
    """A verb: the module that runs it, and its line in `qdpo --help`."""

    module: str
    summary: str


VERBS = {
    "train": Verb("qdpo.cli.train", "fine-tune a model on preference pairs"),
    "init": Verb("qdpo.cli.init", "look at your model and data, and write a preset for them"),
    "plan": Verb("qdpo.cli.plan", "estimate memory, time and disk of a run on a card"),
    "data": Verb("qdpo.cli.data", "check preference data and show what a run would learn from"),
    "pairs": Verb("qdpo.cli.pairs", "make pairs: answers of a model, votes, ratings"),
    "presets": Verb("qdpo.cli.presets", "list the recipes, show one, or copy one to edit"),
    "merge-export": Verb("qdpo.cli.merge_export", "merge a run's adapter into its base and write the model"),
    "report": Verb("qdpo.cli.report", "write a run's card and report page anew, or serve the page"),
    "explain": Verb("qdpo.cli.explain", "say what a run's curves mean, and what to change"),
    "verify": Verb("qdpo.cli.verify", "score an export against what was trained"),
    "eval": Verb("qdpo.cli.eval", "score base and result on pairs or benchmarks"),
    "push": Verb("qdpo.cli.push", "publish the adapter or an export, with its card, on the hub"),
    "chat": Verb("qdpo.cli.chat", "talk to a run's model, or to base and result side by side"),
    "runs": Verb("qdpo.cli.runs", "list the runs of a folder, or compare two"),
    "doctor": Verb("qdpo.cli.doctor", "show versions, GPU, disk space and optional parts"),
}


STOPPED_BY_SIGNALS = ("merge-export", "verify", "eval")
"""Verbs that work for minutes and clean up when they are stopped; `train` sees to it itself."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; failures are printed, never raised.

    Args:
        argv: the arguments after the program's name; None takes the process's.
    """
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except SystemExit as stop:  # argparse's --help and --version
        return stop.code if isinstance(stop.code, int) else 0
    except QdpoError as error:
        _show_traceback_if_wanted()
        console.fail(error)
        return error.exit_code
    except KeyboardInterrupt:
        console.say("interrupted")
        return EX_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit, into a pipe that nobody reads.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EX_PIPE
    except Exception as error:
        _show_traceback_if_wanted()
        console.fail(_internal(error))
        return EX_SOFTWARE
    return code


def _run(argv: list[str]) -> int:
    name = next((word for word in argv if not word.startswith("-")), None)
    if name is not None and name not in VERBS:
        close = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"did you mean `qdpo {close[0]}`?" if close else f"verbs: {', '.join(VERBS)}"
        raise UsageError(f"there is no verb `{name}`", hint)
    parser, verb_parser, run = _parser(name)
    if verb_parser is not None:
        from qdpo.cli.options import understand

        argv = understand(argv, verb_parser)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UsageError(f"unknown argument: {' '.join(unknown)}", _option_hint(verb_parser or parser, unknown[0]))
    if run is None:
        parser.print_help()
        return UsageError.exit_code
    from qdpo.allocator import expand_segments, return_freed_blocks

    quiet_environment()
    expand_segments()
    return_freed_blocks()
    from qdpo.training.signals import Stopped, insisting, watch

    try:
        if name not in STOPPED_BY_SIGNALS:
            return run(args)
        with watch() as stop, insisting(stop):
            return run(args)
    except Stopped as stopped:
        # not by the interpreter's end, which frees gigabytes piece by piece
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(int(stopped.code or 0))


class _Wide(argparse.HelpFormatter):
    """Room for the longest verb beside its summary."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)
        self._action_max_length = max(map(len, VERBS)) + 4


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors as ours."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"see `{self.prog} --help`")


def _parser(verb: str | None) -> tuple[_Parser, _Parser | None, Run | None]:
    """The whole parser, the chosen verb's own, and the function that runs it."""
    parser = _Parser(
        prog="qdpo",
        description="Fine-tune a language model by DPO: a 4-bit base with LoRA, on one GPU.",
        epilog="`qdpo VERB --help` explains a verb. Set QDPO_TRACEBACK=1 to see where an error comes from.",
        allow_abbrev=False,
        formatter_class=_Wide,
    )
    parser.add_argument("--version", action="version", version=f"qdpo {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb")
    chosen: _Parser | None = None
    run: Run | None = None
    for name, entry in VERBS.items():
        if name != verb:
            verbs.add_parser(name, help=entry.summary, add_help=False)
            continue
        module = importlib.import_module(entry.module)
        chosen = verbs.add_parser(name, help=entry.summary, description=module.HELP, allow_abbrev=False)
        module.add_arguments(chosen)
        run = module.run
    return parser, chosen, run


def _option_hint(parser: argparse.ArgumentParser, given: str) -> str:
    options = [option for action in parser._actions for option in action.option_strings]
    if "--set" in options:
        from qdpo.cli.options import flags

        options += [f"--{name.replace('_', '-')}" for name in flags()]
    close = difflib.get_close_matches(given.partition("=")[0], options, n=1)
    return f"did you mean `{close[0]}`?" if close else f"see `{parser.prog} --help`"


def _internal(error: Exception) -> QdpoError:
    reason = " ".join(str(error).split())[:300]
    return QdpoError(
        f"internal error: {type(error).__name__}: {reason}" if reason else f"internal error: {type(error).__name__}",
        "this is a defect of qdpo: run it again with QDPO_TRACEBACK=1 and report the traceback, with the output of "
        "`qdpo doctor`, to the project's issue tracker",
    )


def _show_traceback_if_wanted() -> None:
    if os.environ.get("QDPO_TRACEBACK", "") not in ("", "0"):
        from qdpo.redact import redact

        print(redact(traceback.format_exc()), end="", file=sys.stderr)
