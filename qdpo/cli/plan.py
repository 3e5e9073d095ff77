"""`qdpo plan`: what a run will need, before anything is downloaded."""

from __future__ import annotations

import argparse

HELP = "Estimate memory, time and disk of a run on a card; downloads nothing but a base's config.json and header."

GGUF = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--preset", metavar="NAME", help="a preset's name or a YAML file (see `qdpo presets`)")
    parser.add_argument(
        "--gpu",
        metavar="CARD",
        help="t4, l4, rtx3090, rtx4090, a40, a100, a100-80, h100, h200, or GiB; default: what is found here, "
        "else the preset's card",
    )
    parser.add_argument("--model", metavar="PATH", help="base model: hub name or local folder (model.name)")
    parser.add_argument("--data", metavar="PATH", help="preference data: hub name or local file (data.name)")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="override one setting"
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
    from qdpo.cli.train import replacements
    from qdpo.config.resolve import resolve
    from qdpo.errors import UsageError
    from qdpo.export.gguf.sizes import gguf_bytes
    from qdpo.planner.auto import choose
    from qdpo.planner.cards import card_for
    from qdpo.planner.data import lengths_for
    from qdpo.planner.find import find_base
    from qdpo.planner.plan import plan
    from qdpo.planner.view import lines

    if args.preset is None:
        raise UsageError("which preset?", "qdpo plan --preset garrulus-t4; `qdpo presets` lists them")
    config = resolve(args.preset, [*replacements(args.model, args.data), *args.overrides]).config
    if args.calibrate:
        from qdpo.planner.calibrate import calibrate

        if args.gpu is not None:
            raise UsageError("--calibrate measures on this machine", "leave --gpu out")
        result = calibrate(config, auto=args.auto)
        console.out().print(json.dumps(result.as_dict(), indent=2) if args.json else result.text(), markup=False)
        return 0
    card, reason = card_for(args.gpu, config.card, config.gpu_memory_gib)
    base = find_base(config.model.name, config.model.revision)
    lengths = lengths_for(config)
    if args.auto:
        config, choices = choose(config, base.shape, card, lengths)
        for choice in choices:
            console.note(f"{choice.setting}: {choice.reason}")
    found = plan(config, base, card, reason, lengths)
    gguf = {kind: gguf_bytes(base.shape, kind) for kind in GGUF}
    if args.json:
        print(json.dumps(found.as_dict(gguf), indent=2))
    else:
        for line in lines(found, gguf):
            console.out().print(line, markup=False)
    return 0
