"""``python -m tools.quickstart_assets``: generate, train, write, and print what was written."""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from .base_model import BaseTraining, encode_texts, model_config, save_model, train
from .corpus import make_corpus, make_heldout_texts
from .pairs import answer_key, make_pairs
from .tokenizer import build_tokenizer, learn_pieces, save_tokenizer

ASSETS = Path(__file__).resolve().parents[2] / "qdpo" / "assets"
SEED = 20
HELDOUT_TEXTS = 160
MAX_LENGTH = 512  # tokens


def write_jsonl(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """One JSON object per line, UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def print_digests(folder: Path) -> None:
    """SHA-256, size in bytes and name of every file below ``folder``."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        print(f"{hashlib.sha256(content).hexdigest()}  {len(content):>9,}  {path.relative_to(folder)}")


def main() -> None:
    """Writes all assets to a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write to")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--texts", type=int, default=24_000, help="texts in the base model's corpus")
    parser.add_argument("--vocab-size", type=int, default=1536, help="tokens, specials and bytes included")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    pairs = make_pairs(args.seed)
    write_jsonl(args.out / "pairs" / "train.jsonl", pairs.train)
    write_jsonl(args.out / "pairs" / "heldout.jsonl", pairs.heldout)
    write_jsonl(args.out / "pairs" / "answer_key.jsonl", answer_key(pairs.heldout))
    heldout_texts = make_heldout_texts(args.seed, HELDOUT_TEXTS)
    write_jsonl(args.out / "text_heldout.jsonl", [{"text": text} for text in heldout_texts])

    corpus = make_corpus(args.seed, args.texts, pairs.heldout_instances, frozenset(heldout_texts))
    tokenizer = build_tokenizer(learn_pieces(corpus, args.vocab_size))
    rows = encode_texts(tokenizer, corpus)
    tokens = sum(map(len, rows))
    print(f"{len(corpus):,} texts, {tokens:,} tokens, vocabulary {tokenizer.get_vocab_size():,}", flush=True)
    model = train(model_config(tokenizer, MAX_LENGTH), rows, BaseTraining(), args.seed)
    save_tokenizer(tokenizer, args.out / "base", MAX_LENGTH)
    save_model(model, args.out / "base")
    print_digests(args.out)


if __name__ == "__main__":
    main()
