"""`qdpo plan`: what a run will need, before anything is downloaded."""

from __future__ import annotations

import argparse

from qdpo.cli.options import add_config, config_of

HELP = "Estimate memory, time and disk of a run on a card; downloads nothing but a base's config.json and header."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    add_config(parser)
    parser.add_argument(
        "--gpu",
        metavar="CARD",
        help="a card's name (t4, 'RTX 4090', a100-80), its memory (24GiB), or cpu for this machine's processor; "
        "default: what is found here, else the preset's card",
    )
    parser.add_argument("--auto", action="store_true", help="choose budgets, checkpointing and optimizer for the card")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument(
        "--calibrate", action="store_true", help="run one step on the longest batch here, and compare its peak"
    )


def run(args: argparse.Namespace) -> int:
    """Make the plan and print it on stdout."""
    import json

    from qdpo import console
    from qdpo.errors import UsageError

    config = config_of(args, "qdpo plan --preset garrulus-t4")
    for reset in config.resets:
        console.note(str(reset))
    if args.calibrate:
        from qdpo.planner.calibrate import calibrate

        if args.gpu is not None:
            raise UsageError("--calibrate measures on this machine", "leave --gpu out")
        result = calibrate(config, auto=args.auto)
        console.out().print(json.dumps(result.as_dict(), indent=2) if args.json else result.text(), markup=False)
        return 0
    from qdpo.api.planning import plan

    found = plan(config, gpu=args.gpu, auto=args.auto)
    for choice in found.choices:
        console.note(f"{choice.setting}: {choice.reason}")
    if args.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        console.out().print(str(found), markup=False)
    return 0
