"""Every export format of a run, verified: trains the run, exports, scores, and writes the table of docs/export.md.

    python -m benchmarks.export quickstart /tmp/export
    python -m benchmarks.export stories260k /tmp/export
    python -m benchmarks.export --tables                  # only print what benchmarks/results holds

Needs the extras `verify` and `awq`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import torch

from qdpo.cli.main import main as qdpo
from qdpo.export.formats import targets_of
from qdpo.export.gguf.kinds import KINDS, PLAIN
from qdpo.export.output import RECORD
from qdpo.export.source import TrainedRun, load_run
from qdpo.export.verify.bench import Bench
from qdpo.export.verify.room import Room
from qdpo.export.verify.scorers import TorchScorer
from qdpo.export.whole import merged_model
from qdpo.files import read_json, write_json
from qdpo.hardware import find_device

RESULTS = Path(__file__).parent / "results"
MATERIAL = Path(__file__).resolve().parents[1] / "tests" / "material"
NEW_TOKENS = 100
PROMPTS = {
    "quickstart": [
        "Finish the sentence: The trophy did not fit in the suitcase because",
        "Please finish this sentence: The lamp did not light up the attic because",
        "Finish the sentence: The neighbor visited the niece in hospital because",
    ],
    "stories260k": ["Once upon a time", "The little dog was", "One day, Lily"],
}
GROUPS = {
    "16 bits and more": [name for name, kind in KINDS.items() if kind.type in PLAIN],
    "k-quants": [name for name in KINDS if "_k" in name],
    "others": [name for name, kind in KINDS.items() if kind.type not in PLAIN and "_k" not in name],
}
EXPORTS: dict[str, list[str]] = {
    "safetensors": ["--format", "safetensors"],
    "safetensors, original base": ["--format", "safetensors", "--merge-base", "original"],
    **{f"gguf, {group}": ["--format", "gguf", "--quant", ",".join(kinds)] for group, kinds in GROUPS.items()},
    "gguf-lora": ["--format", "gguf-lora"],
    "ollama": ["--format", "ollama", "--quant", "q8_0"],
    "awq": ["--format", "awq"],
    "awq, autoawq layout": ["--format", "awq", "--awq-layout", "autoawq"],
}
BLIMP = (
    *("determiner_noun_agreement_1", "regular_plural_subject_verb_agreement_1", "anaphor_gender_agreement"),
    "determiner_noun_agreement_irregular_1",
)


def main() -> int:
    """Measure one model, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=list(PROMPTS))
    parser.add_argument("folder", nargs="?", type=Path, help="where the run goes; a run that is there is used again")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--only", nargs="+", default=list(EXPORTS), choices=list(EXPORTS), help="replace these rows")
    args = parser.parse_args()
    if args.tables:
        for path in (RESULTS / f"export-{name}.json" for name in PROMPTS):
            if path.is_file():
                print(table(read_json(path)))
        return 0
    if args.model is None or args.folder is None:
        parser.error("name a model and a folder")
    folder = args.folder / args.model
    if not (folder / "run.json").is_file():
        preset = "quickstart" if args.model == "quickstart" else str(blimp_preset(args.folder))
        if code := qdpo(["train", "--preset", preset, "--run-dir", str(folder)]):
            return code
    path = RESULTS / f"export-{args.model}.json"
    for name in args.only:
        measured = measure(load_run(folder), args.model, name)
        result = read_json(path) if path.is_file() else {"model": args.model, "rows": []}
        rows = [row for row in result["rows"] if row["export"] != name] + measured
        rows.sort(key=lambda row: list(EXPORTS).index(row["export"]))
        result |= {"torch": torch.__version__, "rows": rows}
        write_json(path, result)
    print(table(result))
    return 0


def blimp_preset(folder: Path) -> Path:
    """A preset that trains stories260K on minimal pairs, as tests/integration does."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[dict[str, str]]] = {"train": [], "heldout": []}
    with zipfile.ZipFile(MATERIAL / "blimp" / "BLiMP-4-of-67.zip") as archive:
        for name in BLIMP:
            lines = [json.loads(line) for line in archive.read(f"data/{name}.jsonl").decode().splitlines()]
            pairs = [{"prompt": "", "chosen": x["sentence_good"], "rejected": x["sentence_bad"]} for x in lines]
            parts["train"] += pairs[:700]
            parts["heldout"] += pairs[800:]
    for part, pairs in parts.items():
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    preset = folder / "stories260k.json"
    settings = {
        "name": "stories260k",
        "model": {"name": str(MATERIAL / "stories260K")},
        "data": {
            "name": str(folder / "train.jsonl"),
            "eval_name": str(folder / "heldout.jsonl"),
            "template": "none",
            "max_length": 128,
            "max_prompt_length": 16,
        },
        "train": {"pairs_per_step": 16, "max_steps": 200, "learning_rate": 1e-3, "eval_every": 100, "save_every": 100},
    }
    path = preset.with_suffix(".yaml")
    path.write_text(json.dumps(settings).replace("0.001", "1.0e-3"))  # JSON is YAML
    return path


def measure(run: TrainedRun, model: str, name: str) -> list[dict[str, Any]]:
    """Export and verify one format; one row per artefact."""
    out = run.folder / "bench" / name.replace(", ", "-").replace(" ", "-")
    began = time.monotonic()
    code = qdpo(["merge-export", "--run", str(run.folder), "--out", str(out), *EXPORTS[name]])
    seconds = time.monotonic() - began
    verdict, record = read_json(out / "verify.json"), read_json(out / RECORD)
    texts = greedy_texts(run, out, record, model)
    return [
        {
            "export": name,
            "artefact": artefact["name"],
            "kind": artefact["kind"],
            "bytes": weight_bytes(out, artefact["name"]),
            "verdict": artefact["verdict"],
            "checks": {check["name"]: check["passed"] for check in artefact["checks"]},
            "measures": artefact["measures"],
            "parity": artefact["parity"],
            "same_text": texts[artefact["name"]],
            "pairs": artefact["pairs"],
            "exit_code": code,
            "seconds": seconds,
        }
        for artefact in verdict["artefacts"]
    ]


def weight_bytes(out: Path, artefact: str) -> int:
    """Size of an artefact's weights."""
    files = [out / artefact] if (out / artefact).is_file() else list(out.glob("*.safetensors"))
    return sum(path.stat().st_size for path in files)


def greedy_texts(run: TrainedRun, out: Path, record: dict[str, Any], model: str) -> dict[str, str]:
    """For each artefact, how many greedy texts equal those of the merged model in transformers, token by token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.adapter)
    merged = run.merged(record.get("merge_base") or "original")
    reference = TorchScorer(merged_model(merged))
    ends = frozenset({int(tokenizer.eos_token_id)})
    prompts = [prompt_ids(tokenizer, text) for text in PROMPTS[model]]
    wanted = reference.generate(prompts, ends, NEW_TOKENS)
    bench = Bench(Room(out), find_device().torch, max(map(len, prompts)) + NEW_TOKENS, None)
    equal = {}
    for target in targets_of(out, record, run):
        with target.scorer(merged, bench) as scorer:
            found = scorer.generate(prompts, ends, NEW_TOKENS)
        same = sum(one == other for one, other in zip(wanted, found, strict=True))
        tokens = sum(map(len, wanted))
        equal[target.name] = f"{same} of {len(prompts)} ({tokens} tokens)"
    return equal


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """A conversation where the tokenizer has a template; plain text otherwise."""
    if not tokenizer.chat_template:
        return [int(i) for i in tokenizer.encode(text)]
    messages = [{"role": "user", "content": text}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return [int(i) for i in tokenizer.encode(rendered, add_special_tokens=False)]


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        f"{result['model']}, {result['rows'][0]['pairs']} held-out pairs:",
        "",
        "| export | bytes | verdict | adapter in the weights | preference kept | KL to merged (the base's own) | top-1 "
        "| same greedy text | engine |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for row in result["rows"]:
        label = f"gguf {row['kind']}" if row["export"].startswith("gguf,") else row["export"]
        missing = [name for name, passed in row["checks"].items() if passed is None]
        verdict = row["verdict"] + (f"; not run: {', '.join(missing)}" if missing else "")
        exported = row["parity"]["exported"]
        cells = [label, f"{row['bytes']:,}", verdict, *figures(row), row["same_text"], exported["engine"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figures(row: dict[str, Any]) -> list[str]:
    """Projection, slope, KL and top-1 of an artefact."""
    measures = row["measures"]
    apart = measures["divergence"]
    return [
        with_interval(measures["projection"]),
        with_interval(measures["preference"] and measures["preference"]["slope"]),
        f"{apart['total']['value']:.2g} ({apart['base']['value']:.2g})",
        f"{row['parity']['exported']['top1']:.1%}",
    ]


def with_interval(found: dict[str, Any] | None) -> str:
    """A figure with its 95 % interval."""
    return "-" if found is None else f"{found['value']:.3f} [{found['low']:.2f}, {found['high']:.2f}]"


if __name__ == "__main__":
    sys.exit(main())
