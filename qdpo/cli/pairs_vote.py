"""`qdpo pairs vote`: compare answers two by two on a local page."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

HELP = (
    "Compare answers two by two on a page of this machine alone, by keyboard. Every vote is on the disk before the "
    "page says so; stop at any time, and come back with the same command."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the step."""
    parser.add_argument(
        "file", metavar="FILE", help="what `qdpo pairs generate` wrote, or prompts with a list `answers`, or pairs"
    )
    parser.add_argument("--out", metavar="FILE", help="the file of pairs (NAME-pairs.jsonl); votes go beside it")
    parser.add_argument("--port", metavar="N", type=int, help="the port (8718, or a free one)")
    parser.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    parser.add_argument("--seed", metavar="N", type=int, default=42, help="which answer is on the left (42)")
    parser.add_argument("--drop-bad-rows", action="store_true", help="leave out rows that are at fault, and say so")


def run(args: argparse.Namespace) -> int:
    """Serve the page until it is finished or Ctrl-C, and say what is next."""
    from qdpo import console
    from qdpo.cli.next_steps import say_next
    from qdpo.loopback import check_port, in_browser
    from qdpo.pairing.answers import read_answers
    from qdpo.pairing.poll import Poll, log_of
    from qdpo.pairing.serve import Server
    from qdpo.paths import output_path

    check_port(args.port)
    out = output_path(args.out or f"{_stem(args.file)}-pairs.jsonl", "--out")
    answers = read_answers(args.file, drop=args.drop_bad_rows)
    with Poll.opened(answers, out, args.seed) as poll, Server(poll, args.port) as server:
        console.out().print(server.address, markup=False, soft_wrap=True)
        console.note(f"{server.from_elsewhere}; Ctrl-C here ends the voting, and nothing is lost")
        for sentence in poll.summary() if poll.ballot.votes else ():
            console.say(f"so far: {sentence}")
        with in_browser(server, wanted=not args.no_browser):
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                console.say("no longer served")
        for sentence in poll.summary():
            console.say(sentence)
        console.good(f"pairs in {out}, votes in {log_of(out)}")
        open_ones = poll.ballot.total - poll.ballot.done
        file = shlex.quote(str(out))
        steps = (
            [(f"qdpo pairs vote {shlex.quote(args.file)} --out {file}", f"{open_ones:,} are open")] if open_ones else []
        )
        if poll.pairs:
            steps.append((f"qdpo train --model MODEL --data {file}", "train on them"))
        if steps:
            say_next(*steps)
    return 0


def _stem(file: str) -> str:
    path = Path(file)
    name = path.name.partition(".")[0] or path.name
    # the pairs of a dataset from the hub go to the current folder
    return str(path.with_name(name)) if path.exists() else name
