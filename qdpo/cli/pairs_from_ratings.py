"""`qdpo pairs from-ratings`: turn scores, thumbs, edits or votes into pairs."""

from __future__ import annotations

import argparse
import shlex

from qdpo.errors import UsageError
from qdpo.grammar import counted

HELP = (
    "Turn answers that people have rated into preference pairs: scores, thumbs, edits, or the votes of `qdpo pairs "
    "vote`. Of each prompt the highest score is paired with the lowest."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the step."""
    parser.add_argument("file", metavar="FILE", help="rated answers: a file, a folder or a hub dataset")
    parser.add_argument("--out", metavar="FILE", required=True, help="the new file of pairs (JSONL)")
    parser.add_argument("--all-pairs", action="store_true", help="every answer against every one with a lower score")
    parser.add_argument(
        "--min-gap", metavar="X", type=float, default=0.0, help="scores of a pair differ by at least this much (0)"
    )
    parser.add_argument(
        "--column",
        metavar="OURS=YOURS",
        action="append",
        default=[],
        help="your column for a name that qdpo knows, such as score=stars",
    )
    parser.add_argument("--drop-bad-rows", action="store_true", help="leave out rows that are at fault, and say so")


def run(args: argparse.Namespace) -> int:
    """Read, pair, write, and print the file's name on stdout."""
    from qdpo import console
    from qdpo.api.pairing import pairs_from_ratings
    from qdpo.cli.next_steps import say_next
    from qdpo.progress import waiting

    if not 0 <= args.min_gap < float("inf"):
        raise UsageError(f"--min-gap takes a number from 0, not {args.min_gap:g}", "in the unit of the scores")
    with waiting("reading the ratings"):
        ranked = pairs_from_ratings(
            args.file,
            args.out,
            all_pairs=args.all_pairs,
            min_gap=args.min_gap,
            columns=_columns(args.column),
            drop_bad_rows=args.drop_bad_rows,
        )
    console.say(
        f"{ranked.source}: {counted(ranked.rows, 'row')}, {counted(ranked.prompts, 'prompt')}; {ranked.known_by}"
    )
    for sentence in ranked.sentences():
        console.note(sentence)
    console.good(counted(len(ranked.pairs), "pair"))
    file = shlex.quote(args.out)
    say_next(
        (f"qdpo data {file} --model MODEL --preview 3", "see what is learned from"),
        (f"qdpo train --model MODEL --data {file}", "train on them"),
    )
    console.out().print(args.out, markup=False, soft_wrap=True)
    return 0


def _columns(given: list[str]) -> dict[str, str]:
    columns = {}
    for text in given:
        ours, equals, theirs = text.partition("=")
        if not (ours and equals and theirs):
            raise UsageError(f"--column {text} is not OURS=YOURS", "such as --column score=stars")
        columns[ours] = theirs
    return columns
