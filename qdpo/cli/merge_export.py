"""`qdpo merge-export`: merge a run's adapter into its base and write it for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from qdpo.cli.options import add_model, follow_base
from qdpo.cli.verify import exit_code
from qdpo.export.formats import FORMATS

HELP = "merge the adapter into the base, export it, and verify the export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="run directory that `qdpo train` wrote")
    add_model(parser)
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
        help="GGUF types, one file each: f32 f16 bf16 q8_0 q6_k q5_k_m q5_k_s q5_1 q5_0 q4_k_m q4_k_s q4_1 q4_0 iq4_nl "
        "iq4_xs q3_k_l q3_k_m q3_k_s q2_k q2_k_s "
        "(default: q4_k_m)",
    )
    parser.add_argument(
        "--rounding",
        choices=["feedback", "nearest"],
        help="how values are rounded (safetensors, gguf, ollama, awq). feedback: column by column, each making up for "
        "the errors before it, so that what was trained is kept (default where the run has moments of its layers' "
        "inputs; else they are taken first); nearest: each weight by itself",
    )
    parser.add_argument(
        "--imatrix",
        metavar="FILE",
        help="which errors count more when scales are found: auto (default: the run's moments), none, or a file of "
        "llama.cpp's llama-imatrix",
    )
    parser.add_argument(
        "--pick",
        action="store_true",
        help="try the types of --quant (default: q4_k_s to q8_0) and keep the smallest that does what was trained",
    )
    parser.add_argument(
        "--awq-layout",
        choices=["compressed-tensors", "autoawq"],
        help="how AWQ's 4-bit weights are stored: compressed-tensors (default; vLLM, transformers), or autoawq "
        "(quant_method: awq) for engines that take only that",
    )
    parser.add_argument(
        "--pairs", type=int, metavar="N", help="held-out pairs to score (default: the run's verify.pairs)"
    )
    parser.add_argument("--no-verify", action="store_true", help="write without scoring; `qdpo verify` can do it later")


def run(args: argparse.Namespace) -> int:
    """Export and verify; returns the exit code of the verdict, 0 without one."""
    from qdpo.api.exporting import write
    from qdpo.cli.next_steps import after_export
    from qdpo.console import out, warn

    follow_base(args.model, args.run)
    export = write(
        args.run,
        args.format,
        quants=args.quant,
        out=args.out,
        merge_base=args.merge_base,
        dtype=args.dtype,
        awq_layout=args.awq_layout,
        rounding=args.rounding,
        imatrix=args.imatrix,
        pick=args.pick,
        pairs=args.pairs,
        verified=not args.no_verify,
    )
    code, proof = 0, None
    if args.no_verify:
        warn(f"the export was not scored; before you use it: qdpo verify {export.path}")
    else:
        proof = export.verify(args.pairs)
        code = exit_code(proof)
    after_export(args.run, export.path, args.format, proof.verdict if proof else None)
    out().print(str(export.path), markup=False)
    return code
