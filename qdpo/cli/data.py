"""`qdpo data`: check preference data and show what a run would learn from."""

from __future__ import annotations

import argparse

HELP = "Check preference data: recognise it, tokenise it, report on it, compare it with evaluation sets."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("data", metavar="PATH_OR_NAME", help="hub dataset, local file or folder, or `quickstart`")
    parser.add_argument(
        "--preset", metavar="NAME", default="quickstart", help="lengths, template and tokenizer; default quickstart"
    )
    parser.add_argument("--model", metavar="PATH", help="tokenizer: hub name or local folder (model.name)")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help="override one setting"
    )
    parser.add_argument("--preview", metavar="N", type=int, default=0, help="show N pairs token by token")
    parser.add_argument(
        "--against",
        metavar="FILE_OR_NAME",
        nargs="+",
        default=[],
        help="evaluation sets to compare with",
    )
    parser.add_argument("--report", metavar="FILE", help="write data_report.json there")


def run(args: argparse.Namespace) -> int:
    """Prepare the data as a run would, and print the report on stdout."""
    from pathlib import Path

    from qdpo import console
    from qdpo.cli.train import replacements
    from qdpo.config.resolve import resolve
    from qdpo.data.prepare import prepare
    from qdpo.data.preview import preview
    from qdpo.data.view import table
    from qdpo.errors import UsageError
    from qdpo.files import write_json
    from qdpo.model.load import load_tokenizer

    if args.preview < 0:
        raise UsageError(f"--preview takes a number from 0, not {args.preview}")
    given = resolve(args.preset, args.overrides).config.data.name
    # What a preset says of its own dataset (split, schema) does not hold for another one.
    other = replacements(args.model, None if args.data == given else args.data)
    config = resolve(args.preset, [*other, *args.overrides]).config
    settings = config.data
    if args.against:
        settings = settings.model_copy(update={"contamination": [*settings.contamination, *args.against]})
    tokenizer = load_tokenizer(config.model)
    data = prepare(settings, tokenizer, config.train.seed)
    out = console.out()
    out.print(table("training", data.train_report))
    out.print(table("held out", data.heldout_report))
    for pair in data.train[: args.preview]:
        for line in preview(pair, tokenizer, data.template):
            out.print(line)
    if args.report:
        reports = {"train": data.train_report.as_dict(), "heldout": data.heldout_report.as_dict()}
        write_json(Path(args.report), reports)
    return 0
