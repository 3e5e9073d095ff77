"""`qdpo merge-export`: merge a run's adapter into its base and write it for other programs."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from qdpo.errors import UsageError
from qdpo.export.formats import FORMATS

HELP = "merge the adapter into the base, export it, and verify the export"
EX_NOT_GOOD_ENOUGH = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="run directory that `qdpo train` wrote")
    parser.add_argument(
        "--format",
        required=True,
        choices=list(FORMATS),
        help="; ".join(f"{name}: {format.about}" for name, format in FORMATS.items()),
    )
    parser.add_argument(
        "--merge-base",
        choices=["trained", "original"],
        default="trained",
        help="trained (default): merge into the dequantised 4-bit base, which reproduces the trained policy; "
        "original: into the 16-bit base. Merging into 4 bit is not offered: it erases the adapter",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the export (default: RUN/export/FORMAT)")
    parser.add_argument(
        "--dtype", choices=["bfloat16", "float16", "float32"], help="dtype of the weights (default: the base's own)"
    )
    parser.add_argument(
        "--quant",
        type=lambda text: tuple(part.strip() for part in text.split(",")),
        default=(),
        metavar="TYPE,...",
        help="GGUF types, one file each: f32 f16 bf16 q8_0 q6_k q5_k_m q5_k_s q5_1 q5_0 q4_k_m q4_k_s q4_1 q4_0 "
        "(default: q4_k_m)",
    )
    parser.add_argument(
        "--pick",
        action="store_true",
        help="try the types of --quant (default: q4_k_s to q8_0) and keep the smallest that does what was trained",
    )
    parser.add_argument("--pairs", type=int, default=64, metavar="N", help="held-out pairs to score (default: 64)")
    parser.add_argument("--no-verify", action="store_true", help="write without scoring; `qdpo verify` can do it later")


def run(args: argparse.Namespace) -> int:
    """Export and verify; returns 0 when no check failed, 1 otherwise."""
    from qdpo.console import out, warn
    from qdpo.export.request import Request
    from qdpo.export.source import load_run

    if args.dtype and args.format != "safetensors":
        raise UsageError(f"--dtype is for safetensors, not for {args.format}", "choose GGUF types with --quant")
    if args.quant and args.format == "safetensors":
        raise UsageError("--quant is for gguf, not for safetensors", "choose the precision with --dtype")
    request = Request(
        run=load_run(args.run),
        out=args.out or args.run / "export" / args.format,
        merge_base=args.merge_base,
        dtype=args.dtype,
        quants=args.quant,
    )
    if args.pick:
        from qdpo.export.pick import pick

        if args.format not in ("gguf", "ollama"):
            raise UsageError(f"--pick chooses among GGUF types, not for {args.format}", "use --format gguf or ollama")
        chosen, _ = pick(request, args.pairs)
        request = dataclasses.replace(request, quants=(chosen,))
    folder = FORMATS[args.format].write(request)
    passed = True
    if args.no_verify:
        warn(f"the export was not scored; before you use it: qdpo verify {folder}")
    else:
        from qdpo.export.verify.run import verify_export

        passed = verify_export(folder, args.run, args.pairs)["passed"]
    out().print(str(folder), markup=False)
    return 0 if passed else EX_NOT_GOOD_ENOUGH
