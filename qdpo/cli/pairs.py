"""`qdpo pairs`: where preference pairs come from, one file per step (`qdpo.cli.pairs_*`)."""

from __future__ import annotations

import argparse
import importlib

HELP = (
    "Make preference pairs of your own: let a model answer your prompts, vote on the answers, turn ratings into pairs, "
    "and choose a part of a large set."
)
STEPS = {
    "generate": "let a base or a run answer prompts, several times each",
    "vote": "compare answers two by two on a local page",
    "from-ratings": "turn scores, thumbs, edits or votes into pairs",
    "select": "choose a part of a large set",
}
"""The steps, each a module with `HELP`, `add_arguments(parser)` and `run(args) -> exit code`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The steps, and the options of each."""
    steps = parser.add_subparsers(title="steps", metavar="STEP", dest="step", required=True)
    for name, summary in STEPS.items():
        module = importlib.import_module(f"qdpo.cli.pairs_{name.replace('-', '_')}")
        step = steps.add_parser(name, help=summary, description=module.HELP, allow_abbrev=False)
        module.add_arguments(step)
        step.set_defaults(run_step=module.run)


def run(args: argparse.Namespace) -> int:
    """Run the chosen step."""
    code: int = args.run_step(args)
    return code
