"""`qdpo chat`: talk to a run's model, or to base and result side by side."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from qdpo.cli.options import add_model, follow_base

if TYPE_CHECKING:
    from qdpo.data.pairs import Message
    from qdpo.evaluation.chat import Sampling
    from qdpo.run.trained import Trained

HELP = "Talk to the result of a run. An empty line or Ctrl-D ends; /reset forgets the conversation."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--run", metavar="DIR", required=True, help="the run directory")
    add_model(parser)
    parser.add_argument("--compare", action="store_true", help="let the base answer too, for comparison")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this one message and stop")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, default=256, help="length of an answer (256)")
    parser.add_argument("--temperature", metavar="T", type=float, default=0.0, help="0 is greedy, the default")
    parser.add_argument("--top-p", metavar="P", type=float, default=0.95, help="nucleus, when sampling (0.95)")
    parser.add_argument("--seed", metavar="N", type=int, default=42, help="seed, when sampling (42)")


def run(args: argparse.Namespace) -> int:
    """Answer one prompt, or every line of the input."""
    from pathlib import Path

    from qdpo.errors import UsageError
    from qdpo.evaluation.chat import Sampling
    from qdpo.libraries import quiet_libraries
    from qdpo.progress import waiting
    from qdpo.run.trained import load_trained

    if args.max_new_tokens < 1 or args.temperature < 0 or not 0 < args.top_p <= 1:
        raise UsageError("--max-new-tokens must be at least 1, --temperature at least 0, --top-p above 0 and at most 1")
    quiet_libraries()
    follow_base(args.model, Path(args.run).expanduser())
    with waiting("loading base and adapter"):
        trained = load_trained(Path(args.run).expanduser())
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    sides = ["base", "trained"] if args.compare else ["trained"]
    histories: dict[str, list[Message]] = {side: [] for side in sides}
    if args.prompt is not None:
        _turn(trained, histories, args.prompt, sampling)
        return 0
    return _converse(trained, histories, sampling)


def _converse(trained: Trained, histories: dict[str, list[Message]], sampling: Sampling) -> int:
    asking = sys.stdin.isatty()
    while True:
        try:
            said = input("you> " if asking else "")
        except EOFError:
            return 0
        if said.strip() == "/reset":
            for history in histories.values():
                history.clear()
        elif said.strip():
            _turn(trained, histories, said, sampling)
        elif asking:
            return 0


def _turn(trained: Trained, histories: dict[str, list[Message]], said: str, sampling: Sampling) -> None:
    from qdpo.data.pairs import Message
    from qdpo.evaluation.chat import answer, note_special_text

    note_special_text(trained, said)
    for side, history in histories.items():
        # Plain text has no turns: each line is continued on its own.
        if trained.template.source is None:
            history.clear()
        history.append(Message("user", said))
        label = f"{side:>7}> " if len(histories) > 1 else ""
        print(label, end="", flush=True)
        pieces = []
        for piece in answer(trained, history, sampling, base=side == "base"):
            pieces.append(piece)
            print(piece, end="", flush=True)
        print()
        history.append(Message("assistant", "".join(pieces)))
