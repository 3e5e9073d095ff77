"""`qdpo pairs select`: choose a part of a large set of pairs, and say what was left out and why."""

from __future__ import annotations

import argparse
import shlex

from qdpo import console
from qdpo.cli.next_steps import say_next
from qdpo.cli.options import add_set
from qdpo.grammar import counted

HELP = (
    "Choose a part of a file of pairs: by length, scores, the margin under a base or a run, without doubles. The rows "
    "stay as they are, in their order; what is left out is counted by reason. Measure whether it helps: "
    "docs/pairs-select.md says where it did and where a random part did as well."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the step."""
    parser.add_argument("file", metavar="FILE", help="the pairs: a file of any form that `qdpo data` reads")
    parser.add_argument("--out", metavar="FILE", required=True, help="the new file, in the same form")
    parser.add_argument(
        "--by",
        metavar="NAME,...",
        default="",
        help="what comes first: answers alike in length (length), a large difference of scores (score), what the base "
        "has right (base) or wrong (hard), what a run has learned best (run) or least (new), or any (random); "
        "duplicates leaves out doubles. Several are combined. Default: score where the file has scores, and with --run "
        "also run",
    )
    parser.add_argument("--keep", metavar="N", help="a share (0.3, 30%%) or a number of pairs (500); default 0.3")
    parser.add_argument("--model", metavar="PATH", help="the base that `base` and `hard` ask")
    parser.add_argument("--run", metavar="DIR", help="the run that `run` and `new` ask, a short one will do")
    parser.add_argument("--report", metavar="FILE", help="write there why each row was left out (JSON)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="breaks ties, and is the order of random (0)")
    add_set(parser)


def run(args: argparse.Namespace) -> int:
    """Choose, write, and say what was left out; the file's name goes to stdout."""
    from qdpo.api.selecting import select_pairs
    from qdpo.pairing.select import parse_keep
    from qdpo.pairing.select_report import remarks, tables
    from qdpo.paths import output_path

    target = output_path(args.out, "--out")
    selection = select_pairs(
        args.file,
        target,
        [name.strip() for name in args.by.split(",") if name.strip()],
        keep=None if args.keep is None else parse_keep(args.keep),
        model=args.model,
        run=args.run,
        report=None if args.report is None else output_path(args.report, "--report"),
        overrides=args.overrides,
        seed=args.seed,
    )
    for table in tables(selection):
        console.talk().print(table)
        console.talk().print()
    for remark in remarks(selection):
        console.note(remark)
    console.good(
        f"{len(selection.rows):,} of {counted(len(selection.measured.rows), 'pair')}, by {', '.join(selection.by)}"
    )
    model = shlex.quote(args.model) if args.model else "MODEL"
    steps = [(f"qdpo train --model {model} --data {shlex.quote(args.out)}", "train on them")]
    if "random" not in selection.by:
        control = f"qdpo pairs select {shlex.quote(args.file)} --out random{target.suffix} --by random"
        steps.append((f"{control} --keep {len(selection.rows)}", "the control: as many pairs at random"))
    say_next(*steps)
    console.out().print(args.out, markup=False, soft_wrap=True)
    return 0
