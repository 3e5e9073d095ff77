"""Samples at evaluations: right, the same after a resume, and without any influence on the training."""

from __future__ import annotations

import contextlib
import functools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import sweep
from engine.toys import ARCHITECTURES, build, words
from torch.utils._python_dispatch import TorchDispatchMode
from training.tiny import Tiny, TinyRun, make_tokenizer, resolve_tiny, train_tiny, train_until, write_rows

from qdpo.data.pairs import Message, TokenPair
from qdpo.data.template import load_template
from qdpo.engine import attention
from qdpo.engine.decoding import greedy
from qdpo.engine.fuse import fuse
from qdpo.evaluation.chat import Sampling, answer
from qdpo.hardware import Device
from qdpo.model.load import load_base
from qdpo.model.lora import attach
from qdpo.run.folder import SAMPLES
from qdpo.run.trained import load_trained
from qdpo.training.samples import Samples, choose_prompts

DROPOUT = ("train.disable_dropout=false", "lora.lora_dropout=0.2")


def read(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / SAMPLES).read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    return train_tiny(tiny, tmp_path_factory.mktemp("samples") / "run", *DROPOUT)


def test_every_evaluation_has_its_samples(run: TinyRun) -> None:
    rows = read(run.folder)
    assert [(row["step"], row["sample"]) for row in rows] == [(s, n) for s in (0, 10, 20) for n in range(3)]
    heldout = resolve_tiny_rows(run)
    for row in rows:
        assert heldout[row["row"]]["prompt"] in row["prompt"]
        assert row["chosen"] == heldout[row["row"]]["chosen"]
        assert row["base"] == rows[row["sample"]]["base"]
    assert all(row["policy"] == row["base"] for row in rows[:3])
    assert any(row["policy"] != row["base"] for row in rows[6:])


def resolve_tiny_rows(run: TinyRun) -> dict[int, dict[str, str]]:
    """The held-out rows by their lines' numbers."""
    path = Path(run.record["data"]["heldout"]["name"])
    return dict(enumerate(map(json.loads, path.read_text().splitlines()), 1))


def test_answers_are_those_of_transformers_own_generation(run: TinyRun) -> None:
    trained = load_trained(run.folder)
    sampling = Sampling(64, 0.0, 1.0, 0)
    for row in read(run.folder)[6:]:
        question = [Message("user", resolve_tiny_rows(run)[row["row"]]["prompt"])]
        for side in ("base", "policy"):
            said = "".join(answer(trained, question, sampling, base=side == "base")).strip()
            assert row[side] == said


def test_training_is_the_same_without_samples(run: TinyRun, tiny: Tiny, tmp_path: Path) -> None:
    without = train_tiny(tiny, tmp_path / "run", *DROPOUT, "samples.count=0")
    assert without.sha256 == run.sha256
    assert without.measured() == run.measured()
    assert not (tmp_path / "run" / SAMPLES).exists()


def test_a_resumed_run_has_the_samples_of_an_uninterrupted_one(run: TinyRun, tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train_until(tiny, folder, 13, *DROPOUT, "train.save_every=7")
    assert {row["step"] for row in read(folder)} == {0, 10}
    resumed = train_tiny(tiny, folder, *DROPOUT, "train.save_every=7", resume=True)
    assert resumed.sha256 == run.sha256
    assert read(folder) == read(run.folder)


def test_generators_are_left_alone(run: TinyRun) -> None:
    trained = load_trained(run.folder)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    trained.policy.train()
    callback = Samples(run.folder / "x", choose(trained), trained.tokenizer, frozenset({1}), 8)
    rows = callback.answers(trained.policy, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert trained.policy.training
    assert len(rows) == 3


def choose(trained: Any) -> list[Any]:
    pairs = [TokenPair(i, [0, 60 + i, 61], [70, 1], [71, 1]) for i in range(5)]
    return choose_prompts(trained.config, trained.tokenizer, trained.template, pairs)


def test_prompts_of_ones_own_are_asked_in_the_chat_format(tiny: Tiny) -> None:
    config = resolve_tiny(tiny, 'samples.prompts=["Where is the cat?"]').config
    tokenizer = make_tokenizer()
    (prompt,) = choose_prompts(config, tokenizer, load_template("auto", tokenizer), [])
    # the template has a place for a system message, and data.system gives none: an empty one is not added
    assert tokenizer.decode(prompt.ids) == "<s><|user|>\nWhere is the cat?</s>\n<|assistant|>\n"
    assert (prompt.row, prompt.chosen) == (None, None)


def test_prompts_are_different_and_hold_text(tiny: Tiny) -> None:
    tokenizer = make_tokenizer()
    template = load_template("none", tokenizer)
    same, other = tokenizer.encode("the cat"), tokenizer.encode("the dog")
    pairs = [TokenPair(i, ids, [70], [71]) for i, ids in enumerate(([0], same, same, [0], other, other))]
    chosen = choose_prompts(resolve_tiny(tiny).config, tokenizer, template, pairs)
    assert [prompt.row for prompt in chosen] == [1, 4]
    assert choose_prompts(resolve_tiny(tiny, "samples.count=0").config, tokenizer, template, pairs) == []


def test_bare_sentences_are_trained_on_without_samples(tiny: Tiny, tmp_path: Path) -> None:
    rows = [{"sentence_good": f"{i} cats sleep.", "sentence_bad": f"{i} cats sleeps."} for i in range(30)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    overrides = (f"data.name={tmp_path / 'pairs.jsonl'}", "data.eval_name=null", "data.template=none")
    train_tiny(tiny, tmp_path / "run", *overrides, "data.eval_fraction=0.3", "train.max_steps=2")
    assert not (tmp_path / "run" / SAMPLES).exists()


def test_a_model_that_cannot_answer_is_trained_all_the_same(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("no cache for you")

    monkeypatch.setattr("qdpo.training.samples.greedy", fail)
    train_tiny(tiny, tmp_path / "run", "train.max_steps=2")
    said = capsys.readouterr().err
    assert said.count("no samples from here on") == 1
    assert "no cache for you" in said


def test_a_model_without_a_cache_is_run_on_all_of_it() -> None:
    seen: list[int] = []

    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: torch.Tensor, **settings: Any) -> Any:
            seen.append(input_ids.shape[1])
            logits = torch.zeros(1, input_ids.shape[1], 9)
            logits[0, -1, input_ids.shape[1]] = 1
            return type("Output", (), {"logits": logits})()

    assert greedy(Counting(), [[5, 5]], frozenset({6}), 10) == [([2, 3, 4, 5], True)]
    assert seen == [2, 3, 4, 5, 6]
    assert greedy(Counting(), [[5, 5]], frozenset(), 2) == [([2, 3], False)]


# ------------------------------------------------------------------------------------------------------ several at once

PROMPTS = [words(random.Random(length), length) for length in (13, 4, 9)]
"""Of different lengths, and longer than the toys' sliding windows."""
TOKENS = 12


def continued(model: Any, prompt: list[int]) -> list[int]:
    """The likeliest continuation of one prompt: no cache, no mask, no padding."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(TOKENS):
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


# Besides the toys: learned positions, sinks beside alternating windows, no positions, a state.
@pytest.mark.parametrize(
    ("name", "installed"),
    [(name, installed) for name in ARCHITECTURES for installed in (False, True)]
    + [(name, False) for name in ("gpt2", "opt", "gpt_oss", "bloom", "mamba")],
)
def test_prompts_answered_together_are_answered_as_each_alone(name: str, installed: bool) -> None:
    model = build(name, torch.float32) if name in ARCHITECTURES else sweep.build(name)
    expected = [continued(model, prompt) for prompt in PROMPTS]
    if installed:
        attention.install(model)
    assert [ids for ids, _ in greedy(model, PROMPTS, frozenset(), TOKENS)] == expected
    # one that ends early, or at its first token, leaves the others as they are
    ends = frozenset({expected[1][2], expected[2][0]})
    until = [next((i for i, token in enumerate(ids) if token in ends), TOKENS) for ids in expected]
    wanted = [(ids[:end], end < TOKENS) for ids, end in zip(expected, until, strict=True)]
    assert wanted[2] == ([], True)
    assert greedy(model, PROMPTS, ends, TOKENS) == wanted


@pytest.mark.parametrize("left_out", ["attention_mask", "position_ids"])
def test_padding_that_the_model_is_not_told_of_would_be_seen(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sweep.build("gpt2")
    expected = [continued(model, prompt) for prompt in PROMPTS]
    plain = model.forward
    monkeypatch.setattr(model, "forward", functools.wraps(plain)(lambda **kw: plain(**{**kw, left_out: None})))
    assert [ids for ids, _ in greedy(model, PROMPTS, frozenset(), TOKENS)] != expected


@pytest.mark.parametrize("why", ["a state", "no positions"])
def test_a_model_that_would_read_padding_as_text_answers_one_by_one(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama", torch.float32)
    plain, rows = model.forward, set()

    def told(input_ids: torch.Tensor, position_ids: Any = None, **settings: Any) -> Any:
        rows.add(input_ids.shape[0])
        return plain(input_ids=input_ids, **settings)

    def untold(input_ids: torch.Tensor, **settings: Any) -> Any:
        return told(input_ids, **settings)

    monkeypatch.setattr(model, "forward", told if why == "a state" else untold)
    monkeypatch.setattr(model, "_is_stateful", why == "a state", raising=False)
    assert [ids for ids, _ in greedy(model, PROMPTS, frozenset(), TOKENS)] == [continued(model, p) for p in PROMPTS]
    assert rows == {1}


def test_only_the_last_columns_logits_are_made() -> None:
    model, widths = build("llama", torch.float32), []
    model.lm_head.register_forward_hook(lambda module, args, output: widths.append(tuple(output.shape[:2])))
    greedy(model, PROMPTS, frozenset(), 3)
    assert widths == [(3, 1)] * 3


class Launches(TorchDispatchMode):
    """Counts bitsandbytes' operators."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "bitsandbytes":
            self.counts[function._opname] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("adapter", [True, False], ids=["policy", "base"])
def test_no_weight_is_dequantized_for_a_token(adapter: bool, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve_tiny(tiny).config
    policy = attach(load_base(config.model, Device("cpu", "CPU", None, 1)).model, config.lora, 0).eval()
    fusion = fuse(policy)
    assert fusion.counts == {"lora": 14, "mlp": 2, "norm": 5}
    model, prompts = policy.get_base_model(), [[0, 60, 61, 62], [0, 63]]

    def launches(tokens: int) -> tuple[Counter[str], Any]:
        context = contextlib.nullcontext() if adapter else policy.disable_adapter()
        with torch.no_grad(), context, Launches() as seen:
            answers = greedy(model, prompts, frozenset(), tokens)
        return seen.counts, answers

    counts, answers = launches(5)
    assert counts == {"gemm_4bit": 5 * 14}
    monkeypatch.setattr("qdpo.engine.frozen.is_decoding", lambda: False)
    as_in_training, same = launches(5)
    assert as_in_training["dequantize_4bit"] == 5 * 14
    assert "gemm_4bit" not in as_in_training
    assert same == answers


def test_a_pass_of_the_reference_rounds_as_training_does(tiny: Tiny) -> None:
    """However few its rows are: only what decodes takes the other product."""
    config = resolve_tiny(tiny).config
    policy = attach(load_base(config.model, Device("cpu", "CPU", None, 1)).model, config.lora, 0).eval()
    fuse(policy)
    ids = torch.tensor([[0]])
    with torch.no_grad(), Launches() as without:
        policy(input_ids=ids)
    with Launches() as training:
        policy(input_ids=ids)
    assert without.counts == training.counts
    assert without.counts["dequantize_4bit"] == 14
    assert "gemm_4bit" not in without.counts


def test_fewer_prompts_at_a_time_when_memory_runs_out(
    run: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = load_trained(run.folder)
    made: list[int] = []

    def short(model: Any, prompts: list[list[int]], *args: Any) -> Any:
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        made.append(len(prompts))
        return greedy(model, prompts, *args)

    callback = Samples(run.folder / "x", choose(trained), trained.tokenizer, frozenset({1}), 8)
    expected = callback.answers(trained.policy, 3)
    monkeypatch.setattr("qdpo.training.samples.greedy", short)
    again = Samples(run.folder / "x", choose(trained), trained.tokenizer, frozenset({1}), 8)
    assert again.answers(trained.policy, 3) == expected
    assert made == [1] * 6
    said = capsys.readouterr().err
    assert "out of memory in the samples: 2 prompts at a time from here on" in said
    assert "out of memory in the samples: 1 prompts at a time from here on" in said


def test_the_terminal_obeys_no_answer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    callback = Samples(tmp_path / SAMPLES, [], tokenizer, frozenset(), 4)
    row = {"prompt": "[bold]why[/bold]", "base": "a\nb", "policy": "\x1b[31mred\x07"}
    callback._show(3, [row])
    callback._show(4, [row])
    said = capsys.readouterr().err
    assert "[bold]why[/bold]" in said
    assert "\x1b" not in said
    assert "\x07" not in said
    assert [line.split() for line in said.splitlines()][2:4] == [["base", "a"], ["b"]], "an answer keeps its lines"
    assert "samples at step 4: the same answers as before" in said
