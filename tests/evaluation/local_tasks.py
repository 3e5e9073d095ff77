"""Two lm-eval tasks from local files: which of two sentences is grammatical, and a word to be said."""

from __future__ import annotations

import json
from pathlib import Path

SENTENCES = (
    ("The cats on the mat", "are asleep", "is asleep"),
    ("The dog near the trees", "barks", "bark"),
    ("These apples", "taste sweet", "tastes sweet"),
    ("The girl hurt", "herself", "himself"),
    ("A small child", "runs", "run"),
    ("The old man", "sits", "sit"),
    ("Many birds", "sing", "sings"),
    ("The sun", "shines", "shine"),
)
AGREEMENT, WORD = "qdpo_agreement", "qdpo_word"


def pairs() -> list[dict[str, str]]:
    """The sentences as minimal pairs."""
    return [{"sentence_good": f"{a} {b}.", "sentence_bad": f"{a} {c}."} for a, b, c in SENTENCES]


def write_tasks(folder: Path) -> Path:
    """Write data and YAML of both tasks; returns the folder for --include."""
    folder.mkdir(exist_ok=True)
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs()))
    common = f"""dataset_path: json
dataset_kwargs:
  data_files:
    validation: {json.dumps(str(data))}
validation_split: validation
fewshot_split: validation
metadata:
  version: 1.0
"""
    (folder / "agreement.yaml").write_text(
        f"""task: {AGREEMENT}
output_type: multiple_choice
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{{{[sentence_good, sentence_bad]}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
{common}"""
    )
    (folder / "word.yaml").write_text(
        f"""task: {WORD}
output_type: generate_until
doc_to_text: "{{{{sentence_bad}}}} Better:"
doc_to_target: "{{{{sentence_good}}}}"
generation_kwargs:
  until: ["."]
  max_gen_toks: 6
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
{common}"""
    )
    return folder
