"""A real trained model on real minimal pairs, through the whole command: held-out preference must rise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from materials import MATERIAL, STORIES

import qdpo

PARADIGMS = (
    "determiner_noun_agreement_1",
    "regular_plural_subject_verb_agreement_1",
    "anaphor_gender_agreement",
    "determiner_noun_agreement_irregular_1",
)
TRAIN, HELDOUT = slice(0, 700), slice(800, 1000)
ROOT = Path(qdpo.__file__).parents[1]


def read_paradigm(archive: zipfile.ZipFile, name: str) -> list[dict[str, str]]:
    """The minimal pairs of a paradigm as preferences without a prompt."""
    rows = [json.loads(line) for line in archive.read(f"data/{name}.jsonl").decode().splitlines()]
    assert len(rows) == 1000
    return [{"prompt": "", "chosen": row["sentence_good"], "rejected": row["sentence_bad"]} for row in rows]


def write_pairs(archive: Path, folder: Path) -> tuple[Path, Path]:
    """JSONL files of training and held-out pairs."""
    train, heldout = folder / "train.jsonl", folder / "heldout.jsonl"
    with zipfile.ZipFile(archive) as opened:
        paradigms = [read_paradigm(opened, name) for name in PARADIGMS]
    for path, part in ((train, TRAIN), (heldout, HELDOUT)):
        path.write_text("".join(json.dumps(row) + "\n" for rows in paradigms for row in rows[part]))
    return train, heldout


def test_a_trained_model_learns_which_sentence_is_grammatical(tmp_path: Path) -> None:
    train, heldout = write_pairs(MATERIAL / "blimp" / "BLiMP-4-of-67.zip", tmp_path)
    preset = tmp_path / "blimp.yaml"
    preset.write_text(
        f"""name: stories260k-blimp
model:
  name: {json.dumps(str(STORIES))}
lora:
  r: 16
data:
  name: {json.dumps(str(train))}
  eval_name: {json.dumps(str(heldout))}
  template: none
  max_length: 128
  max_prompt_length: 16
loss:
  beta: 0.1
train:
  pairs_per_step: 16
  max_steps: 200
  learning_rate: 1.0e-3
  eval_every: 100
  save_every: 100
  log_every: 20
"""
    )
    folder = tmp_path / "run"
    result = subprocess.run(
        [sys.executable, "-m", "qdpo", "train", "--preset", str(preset), "--run-dir", str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    record = json.loads((folder / "run.json").read_text())
    assert record["quantization"]["method"] == "nf4"
    assert len(record["quantization"]["modules"]) == 5 * 7
    assert (record["data"]["train"]["pairs"], record["data"]["heldout"]["pairs"]) == (2800, 800)
    before, after = record["result"]["before"], record["result"]["after"]
    assert 0.60 <= before["eval_logps/accuracies"] <= 0.70
    assert after["eval_logps/accuracies"] >= 0.88
    assert after["eval_rewards/accuracies"] >= 0.88
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
