"""`qdpo eval`: did it work? Held-out pairs, other pairs, or benchmarks, by base and result."""

from __future__ import annotations

import argparse
from pathlib import Path

from qdpo.cli.options import add_set, follow_base

HELP = (
    "Score base and result: on held-out pairs, on other pairs (--pairs), on benchmarks (--tasks, --preset), or by a "
    "judge of what they wrote (--judge)."
)

CHANGEABLE = ("data.", "model.", "packing.", "loss.beta")
"""What --set may change here; the rest of a configuration is about training."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--run", metavar="DIR", help="the run directory")
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="instead of --run: a base, hub name or local folder; with it: where the base lies now",
    )
    parser.add_argument("--adapter", metavar="DIR", type=Path, help="with --model: a PEFT adapter on it")
    parser.add_argument("--pairs", metavar="FILE", help="score these pairs (any schema of `qdpo data`), not the run's")
    parser.add_argument("--tasks", metavar="NAME,...", help="run these tasks of lm-evaluation-harness instead")
    parser.add_argument("--preset", metavar="NAME", help="run a set of tasks with their shots: open-llm-v1")
    parser.add_argument(
        "--judge",
        metavar="URL",
        help="let a model compare the run's written answers (samples.jsonl): a server with OpenAI's chat protocol; it "
        "gets prompts and answers, and OPENAI_API_KEY if that is set",
    )
    parser.add_argument("--judge-model", metavar="NAME", help="with --judge: its model (the first that it lists)")
    parser.add_argument("--shots", metavar="N", type=int, help="with --tasks: few-shot examples (the task's own)")
    parser.add_argument(
        "--form",
        choices=["adapter", "merged"],
        default="adapter",
        help="with tasks: run the result as base and adapter (default), or as merge-export wrote it",
    )
    parser.add_argument("--include", metavar="DIR", type=Path, help="with tasks: folder of further task YAML files")
    parser.add_argument("--chat-template", action="store_true", help="with tasks: ask in the model's chat format")
    parser.add_argument("--batch-size", metavar="N", type=int, default=8, help="with tasks: requests at once (8)")
    parser.add_argument(
        "--limit", metavar="N", type=int, help="use the first N pairs, written answers, or items of each task"
    )
    parser.add_argument("--out", metavar="DIR", help="where the JSON goes (default: RUN/evaluation)")
    add_set(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table on stdout, and write the JSON."""
    _check(args)
    from qdpo import console
    from qdpo.api.evaluating import Evaluation
    from qdpo.evaluation import harness, judge, run_tasks
    from qdpo.evaluation.tasks_table import before_after
    from qdpo.evaluation.view import sentences, tables
    from qdpo.paths import output_path
    from qdpo.run import folder as run_folder

    run = run_folder.existing(args.run) if args.run else None
    if run is not None:
        follow_base(args.model, run)
    evaluation = Evaluation(
        run=run,
        model=None if run else args.model,
        adapter=args.adapter,
        out=None if args.out is None else output_path(args.out, "--out"),
        limit=args.limit,
        overrides=args.overrides,
    )
    if args.judge:
        result = evaluation.by_judge(args.judge, args.judge_model)
        for sentence in judge.sentences(result):
            console.out().print(sentence, markup=False)
    elif args.tasks or args.preset:
        harness.check_installed()
        groups = run_tasks.groups_of(_names(args.tasks), args.shots, args.preset)
        settings = harness.Settings(args.include, args.limit, args.chat_template, args.batch_size)
        result = evaluation.on_tasks(groups, settings, merged=args.form == "merged")
        console.out().print(before_after(result))
    else:
        result = evaluation.on_pairs(args.pairs)
        for table in tables(result):
            console.out().print(table)
            console.out().print()
        for sentence in sentences(result):
            console.out().print(sentence, markup=False)
    evaluation.keep(result, args.pairs)
    return 0


def _check(args: argparse.Namespace) -> None:
    from qdpo.errors import UsageError

    if args.run is None and args.model is None:
        raise UsageError("evaluate what?", "give --run DIR, or --model PATH with --adapter DIR")
    if args.adapter and (args.run or not args.model):
        raise UsageError("--adapter needs --model: a run brings its own", "leave --adapter out, or --run")
    tasks = bool(args.tasks or args.preset)
    if (args.pairs and tasks) or (args.tasks and args.preset):
        raise UsageError("--pairs, --tasks and --preset are different evaluations", "give one of them")
    if args.judge and (args.pairs or tasks):
        raise UsageError("--judge compares what a run wrote; pairs and tasks are other evaluations", "give one of them")
    if args.judge and not args.run:
        raise UsageError("--judge needs --run: it compares the answers in a run's samples.jsonl", "--run DIR")
    if args.judge_model and not args.judge:
        raise UsageError("--judge-model is for --judge URL")
    if args.model and not args.run and not (args.pairs or tasks):
        raise UsageError("a model has no held-out pairs of its own", "add --pairs FILE, or --tasks NAME,...")
    for option in ("shots", "include"):
        if getattr(args, option) is not None and not args.tasks:
            raise UsageError(f"--{option} is for --tasks")
    if args.tasks and not _names(args.tasks):
        raise UsageError("--tasks names no task", "for example --tasks winogrande,hellaswag")
    if args.form == "merged" and not args.run:
        raise UsageError("--form merged needs --run", "a merged model without a run is --model PATH alone")
    if not tasks and (args.chat_template or args.form != "adapter"):
        raise UsageError("--form and --chat-template are for --tasks and --preset", "see `qdpo eval --help`")
    for option, least in (("limit", 1), ("batch_size", 1), ("shots", 0)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise UsageError(f"--{option.replace('_', '-')} takes a number from {least}, not {value}")
    for text in args.overrides:
        if not text.startswith(CHANGEABLE):
            raise UsageError(f"--set {text}: an evaluation reads no such setting", f"it reads {', '.join(CHANGEABLE)}")
        if args.run and text.startswith("data.") and not args.pairs:
            raise UsageError(f"--set {text}: a run's own held-out pairs are what they are", "name others by --pairs")
        if args.run and text.startswith("model."):
            raise UsageError(f"--set {text}: a run's model is what was trained", "use --model PATH --adapter DIR")


def _names(tasks: str | None) -> list[str]:
    """The names of `--tasks`, which are separated by commas."""
    return [name.strip() for name in (tasks or "").split(",") if name.strip()]
