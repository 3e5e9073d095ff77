"""`qdpo pairs generate`: let a base or a run answer prompts, several times each."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from qdpo.cli.options import add_set, follow_base
from qdpo.errors import UsageError
from qdpo.grammar import counted

HELP = (
    "Let a base or the result of a run answer prompts, several times each, to vote on. Interrupted at any moment, it "
    "goes on with the same command, and the file is the same in the end."
)
CHANGEABLE = ("model.", "data.template=", "data.system=")
"""What --set may change here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the step."""
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        required=True,
        help="a text file with a prompt in each line, JSONL with `prompt` or `messages`, or preference data",
    )
    parser.add_argument("--model", metavar="PATH", help="the base: hub name or local folder")
    parser.add_argument("--run", metavar="DIR", help="a run directory instead; with --model: where its base lies now")
    parser.add_argument("--by", choices=["base", "run", "both"], help="with --run: who answers; both take turns (run)")
    parser.add_argument("-k", "--answers", metavar="N", type=int, default=2, help="answers to each prompt (2)")
    parser.add_argument("--out", metavar="FILE", required=True, help="the file of answers (JSONL)")
    parser.add_argument("--limit", metavar="N", type=int, help="the first N prompts")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, default=256, help="length of an answer (256)")
    parser.add_argument("--temperature", metavar="T", type=float, default=0.8, help="0 is greedy (0.8)")
    parser.add_argument("--top-p", metavar="P", type=float, default=0.95, help="nucleus (0.95)")
    parser.add_argument("--seed", metavar="N", type=int, default=42, help="seed of the sampling (42)")
    parser.add_argument("--batch-size", metavar="N", type=int, default=16, help="answers written at once (16)")
    parser.add_argument("--drop-bad-rows", action="store_true", help="leave out prompts that are at fault, and say so")
    add_set(parser)


def run(args: argparse.Namespace) -> int:
    """Write the answers, and print the file's name on stdout."""
    _check(args)
    from qdpo import console
    from qdpo.api.pairing import generate_answers
    from qdpo.cli.next_steps import say_next

    if args.run is not None:
        follow_base(args.model, Path(args.run).expanduser())
    try:
        done = generate_answers(
            args.prompts,
            args.out,
            model=None if args.run else args.model,
            run=args.run,
            by=args.by,
            k=args.answers,
            seed=args.seed,
            temperature=args.temperature,
            top_p=args.top_p,
            max_new_tokens=args.max_new_tokens,
            batch_size=args.batch_size,
            limit=args.limit,
            overrides=args.overrides,
            drop_bad_rows=args.drop_bad_rows,
        )
    except KeyboardInterrupt:
        console.say("stopped; the same command goes on where it was")
        raise
    for sentence in done.sentences():
        console.note(sentence)
    console.good(f"{counted(done.answers, 'answer')} to {counted(done.prompts, 'prompt')} in {args.out}")
    if done.prompts > done.alone:
        say_next((f"qdpo pairs vote {shlex.quote(args.out)}", "compare them, two by two"))
    console.out().print(args.out, markup=False, soft_wrap=True)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not belong together.

    Raises:
        UsageError: with the way out.
    """
    if args.run is None and args.model is None:
        raise UsageError("which model answers?", "--model MODEL, or --run DIR for the result of a run")
    if args.run is None and args.by in ("run", "both"):
        raise UsageError(f"--by {args.by} needs a run", "--run DIR")
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit takes a number from 1, not {args.limit}", "leave it out for all prompts")
    for text in args.overrides:
        if not text.startswith(CHANGEABLE):
            raise UsageError(
                f"--set {text}: writing answers reads no such setting", f"it reads {', '.join(CHANGEABLE)}"
            )
        if args.run is not None and text.startswith("model."):
            raise UsageError(f"--set {text}: a run's model is what was trained", "use --model PATH without --run")
