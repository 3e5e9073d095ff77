"""`qdpo data`: check preference data and show what a run would learn from."""

from __future__ import annotations

import argparse

from qdpo.cli.options import add_set

HELP = "Check preference data: recognise it, tokenise it, report on it, compare it with evaluation sets."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("data", metavar="PATH_OR_NAME", help="hub dataset, local file or folder, or `quickstart`")
    parser.add_argument(
        "--preset", metavar="NAME", default="quickstart", help="lengths, template and tokenizer; default quickstart"
    )
    parser.add_argument("--model", metavar="PATH", help="tokenizer: hub name or local folder (model.name)")
    add_set(parser)
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
    from qdpo.api.pairs import load_pairs
    from qdpo.data.view import table
    from qdpo.errors import UsageError
    from qdpo.files import write_json
    from qdpo.paths import check_file, output_path
    from qdpo.progress import waiting

    if args.preview < 0:
        raise UsageError(f"--preview takes a number from 0, not {args.preview}")
    report = None if args.report is None else output_path(args.report, "--report")
    if report is not None:
        read = [args.data, *(name.partition("#")[0] for name in args.against)]
        check_file(report, (Path(name).expanduser() for name in read))
    with waiting("reading, checking and tokenising the data"):
        pairs = load_pairs(args.data, args.preset, args.overrides, model=args.model, against=args.against)
    out = console.out()
    out.print(table("training", pairs.prepared.train_report))
    out.print(table("held out", pairs.prepared.heldout_report))
    for index in range(min(args.preview, len(pairs.train))):
        for line in pairs.preview(index):
            out.print(line)
    if report is not None:
        write_json(report, pairs.report)
    return 0
