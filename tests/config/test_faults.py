"""Faulty presets and overrides: each is explained with its line, what was expected, and the way out."""

import time
from pathlib import Path

import pytest

from qdpo.config.resolve import resolve
from qdpo.errors import ConfigError

GOOD = "name: mine\nmodel:\n  name: base\ndata:\n  name: pairs.jsonl\n"

# Text put after GOOD (lines 1-5), the line that the error names, and parts of the error.
FAULTS = {
    "unknown key": ("train:\n  learning_rte: 1.0e-4", 7, ["train.learning_rte", "did you mean `train.learning_rate`?"]),
    "unknown section": ("trian:\n  seed: 1", 6, ["unknown key `trian`", "`train`"]),
    "key without its section": ("learning_rate: 1.0e-4", 6, ["did you mean `train.learning_rate`?"]),
    "key in another's section": ("lora:\n  beta: 0.1", 7, ["lora.beta", "did you mean `loss.beta`?"]),
    "unknown and like nothing": ("zzzzzz: 1", 6, ["unknown key `zzzzzz`", "qdpo presets show"]),
    "duplicate key": ("loss:\n  beta: 0.1\n  beta: 0.2", 8, ["duplicate key `loss.beta`", "line 7"]),
    "duplicate section": ("train:\n  seed: 1\ntrain:\n  seed: 2", 8, ["duplicate key `train`", "line 6"]),
    "duplicate top-level key": ("name: again", 6, ["duplicate key `name`", "line 1"]),
    "yes for true or false": ("lora:\n  use_rslora: yes", 7, ["true or false", "found `yes`", "write true or false"]),
    "number in quotes": ("train:\n  learning_rate: '5.0e-6'", 7, ["in quotes", "without quotes"]),
    "text for a number": ("train:\n  learning_rate: fast", 7, ["a number above 0", "`fast`", "peak learning rate"]),
    "text for an integer": ("train:\n  seed: lucky", 7, ["a whole number at least 0", "`lucky`"]),
    "float for an integer": ("lora:\n  r: 16.0", 7, ["lora.r: expected a whole number above 0", "`16.0`", "rank"]),
    "boolean for an integer": ("lora:\n  r: true", 7, ["a whole number", "`true`"]),
    "boolean for a number": ("loss:\n  beta: yes", 7, ["a number above 0", "`yes`"]),
    "integer for a boolean": ("lora:\n  use_rslora: 1", 7, ["true or false", "`1`"]),
    "text for a boolean": ("lora:\n  use_rslora: 'true'", 7, ["true or false", "`true`", "without quotes"]),
    "yes for text": ("about: yes", 6, ["about: expected text", "`yes`", "true or false", 'write "yes" in quotes']),
    "no for text": ("card: no", 6, ["`no`, which YAML reads as true or false"]),
    "on for a choice": ("model:\n  dtype: on", 6, ["duplicate key `model`"]),
    "off for a choice": ("lora:\n  bias: off", 7, ["one of none, all, lora_only", 'write "off" in quotes']),
    "number for text": ("about: 2024", 6, ["expected text", "`2024`", "in quotes"]),
    "date for text": ("about: 2024-01-31", 6, ["expected text", "a date", "in quotes"]),
    "null for text": ("about:", 6, ["about: expected text", "nothing"]),
    "list for text": ("about: [a, b]", 6, ["about: expected text", "a list"]),
    "mapping for text": ("about: {a: b}", 6, ["about: expected text", "a mapping"]),
    "text for a list": ("loss:\n  loss_type: discopop", 7, ["a list from sigmoid", "write [discopop]"]),
    "mapping for a list": ("loss:\n  loss_type: {a: b}", 7, ["a list from sigmoid", "a mapping"]),
    "wrong choice": (
        "train:\n  optim: paged_adamw",
        7,
        ["one of auto, adamw_torch_fused", "did you mean `paged_adamw"],
    ),
    "wrong choice in a list": ("loss:\n  loss_type:\n    - sigmoid\n    - hing", 9, ["loss_type[1]", "`hinge`"]),
    "empty list": ("loss:\n  loss_type: []", 7, ["at least one item"]),
    "number in a list of text": ("notes:\n  - a\n  - 7", 8, ["notes[1]: expected text", 'write "7" in quotes']),
    "out of range": ("lora:\n  lora_dropout: 1.0", 7, ["at least 0", "below 1", "`1.0`"]),
    "negative": ("train:\n  max_steps: -5", 7, ["a whole number above 0 or null", "`-5`"]),
    "infinite": ("train:\n  learning_rate: .inf", 7, ["`.inf`: expected a decimal number"]),
    "not a number": ("train:\n  learning_rate: .nan", 7, ["`.nan`"]),
    "sexagesimal": ("train:\n  save_minutes: 1:30", 7, ["YAML reads `1:30` as `90`"]),
    "sexagesimal bomb": ("train:\n  seed: 1" + ":1" * 100_000, 7, ["a number of 200,001 characters"]),
    "seed of more than 32 bits": ("train:\n  seed: 4294967296", 7, ["at most 4294967295"]),
    "octal": ("train:\n  seed: 0042", 7, ["YAML reads `0042` as `34`"]),
    "hexadecimal": ("train:\n  seed: 0x10", 7, ["as `16`"]),
    "underscores": ("train:\n  seed: 1_000", 7, ["as `1000`"]),
    "section that is a list": ("train:\n  - seed", 6, ["train: expected a section", "`['seed']`"]),
    "section that is text": ("train: fast", 6, ["train: expected a section", "`fast`"]),
    "empty section": ("train:", 6, ["train: expected a section", "found nothing", "remove it"]),
    "mapping inside a setting": ("train:\n  seed:\n    value: 1", 7, ["a whole number", "a mapping"]),
    "columns that are a list": ("data_:\n  columns: [a]", 6, ["unknown key `data_`", "`data`"]),
    "both warmups": (
        "train:\n  warmup_steps: 10\n  warmup_ratio: 0.1",
        7,
        ["train: warmup_steps and warmup_ratio are both set"],
    ),
    "reference without adapter": ("reference: start", 6, ["reference: start needs model.adapter"]),
    "smoothing that is ignored": (
        "loss:\n  loss_type: [hinge]\n  label_smoothing: 0.1",
        8,
        ["loss: label_smoothing is 0.1, but ['hinge'] would ignore it"],
    ),
    "divergence without a meaning": (
        "loss:\n  loss_type: [sigmoid, aot]\n  f_divergence_type: forward_kl",
        8,
        ["no meaning for ['aot']"],
    ),
    "weights that do not match": ("loss:\n  loss_weights: [0.5, 0.5]", 7, ["one per loss"]),
    "tab": ("train:\n\tseed: 1", 7, ["a tab in the indentation", "two spaces"]),
    "tab after spaces": ("train:\n  \tseed: 1", 7, ["a tab in the indentation"]),
    "anchor": ("train: &t\n  seed: 1", 6, ["anchors and aliases", "extends"]),
    "alias": ("about: *t", 6, ["anchors and aliases"]),
    "merge key": ("train:\n  <<: {seed: 1}", 7, ["`<<`"]),
    "tag": ("about: !!python/object/apply:os.system ['true']", 6, ["`!!python/object/apply:os.system`", "not allowed"]),
    "application tag": ("about: !secret x", 6, ["tags", "`!secret`"]),
    "second document": ("---\nname: other", 6, ["a second document"]),
    "key that is a number": ("1: x", 6, ["expected a name as key"]),
    "key that is a boolean": ("on: x", 6, ["YAML reads `on` as bool"]),
    "key that is a list": ("? [a]\n: x", 6, ["expected a name as key"]),
    "unclosed bracket": ("notes: [a", None, ["not valid YAML"]),
    "unclosed quote": ("about: 'a", None, ["not valid YAML"]),
    "colon in plain text": ("about: a: b", 6, ["not valid YAML", "needs quotes"]),
    "wrong indentation": ("train:\n  seed: 1\n keep: 2", 8, ["not valid YAML"]),
    "deep nesting": ("about: " + "[" * 500, 6, ["nested deeper than 16 levels"]),
    "NUL": ("about: a\x00b", 6, ["U+0000", "text file"]),
    "control character": ("about: \x1b[31m", 6, ["U+001B"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_preset(fault: str, tmp_path: Path):
    text, line, parts = FAULTS[fault]
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD + text + "\n")
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        resolve(str(file))
    assert time.monotonic() - started < 1
    said = f"{caught.value.message}\n{caught.value.hint}"
    assert f"{file}:{line if line else ''}" in said
    for part in parts:
        assert part in said
    assert all(c.isprintable() or c == "\n" for c in said)


# The whole file, and parts of the error.
FILES = {
    "empty": (b"", ["the file is empty"]),
    "only a comment": (b"# nothing\n", ["the file is empty"]),
    "only a document mark": (b"---\n", ["the file is empty"]),
    "null": (b"null\n", ["mine.yaml:1", "expected `key: value` lines"]),
    "a list": (b"- a\n- b\n", ["mine.yaml:1", "found a list"]),
    "a word": (b"hello\n", ["mine.yaml:1", "found `hello`"]),
    "Latin-1": (b"name: mine\nabout: caf\xe9\n", ["mine.yaml:2", "0xe9", "UTF-8"]),
    "UTF-16": ("name: mine\n".encode("utf-16"), ["mine.yaml:1", "UTF-8"]),
    "binary": (bytes(range(128)), ["mine.yaml:1", "U+0000"]),
    "too large": (b"#" * 1_000_001, ["larger than 1,000,000 bytes"]),
    "too many values": (b"notes: [" + b"a," * 400_000 + b"]", ["more than 5,000 values"]),
    "no name": (b"model:\n  name: a\ndata:\n  name: b\n", ["name is missing", "name of the preset"]),
    "no model": (b"name: a\ndata:\n  name: b\n", ["model.name is missing", "hub name"]),
    "no data, no model": (b"name: a\n", ["2 mistakes", "model.name", "data.name"]),
    "bad name": (b"name: My Preset\nmodel: {name: a}\ndata: {name: b}\n", ["mine.yaml:1", "lower-case letters"]),
    "empty model name": (b"name: a\nmodel: {name: ''}\ndata: {name: b}\n", ["mine.yaml:2", "model.name"]),
    "lengths": (
        b"name: a\nmodel: {name: a}\ndata:\n  name: b\n  max_length: 10\n  max_prompt_length: 10\n",
        ["mine.yaml:5", "mine.yaml:6", "data: max_prompt_length (10) leaves no room"],
    ),
    "remote code": (
        b"name: a\nmodel:\n  name: a\n  trust_remote_code: true\ndata: {name: b}\n",
        ["mine.yaml:4", "40-hex commit"],
    ),
    "extends nothing": (b"extends: nothing-like-it\n", ["mine.yaml:1", "there is no preset `nothing-like-it`"]),
    "extends a misspelt one": (b"extends: garulus-a40\n", ["mine.yaml:1", "did you mean `garrulus-a40`?"]),
    "extends a missing file": (b"extends: ./other.yaml\n", ["other.yaml", "no such file"]),
    "extends itself": (b"name: a\nextends: mine.yaml\n", ["mine.yaml:2", "leads back"]),
    "extends a list": (b"extends: [a]\n", ["mine.yaml:1", "expected a preset's name"]),
    "aliases": (b"a: &a [x,x]\nb: &b [*a,*a]\n", ["mine.yaml:1", "anchors and aliases"]),
}


@pytest.mark.parametrize("fault", FILES)
def test_faulty_file(fault: str, tmp_path: Path):
    content, parts = FILES[fault]
    (tmp_path / "mine.yaml").write_bytes(content)
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        resolve(str(tmp_path / "mine.yaml"))
    assert time.monotonic() - started < 1
    for part in parts:
        assert part in f"{caught.value.message}\n{caught.value.hint}"


def test_a_mistake_in_the_extended_file_names_that_file(tmp_path: Path):
    (tmp_path / "base.yaml").write_text(GOOD + "lora:\n  r: none\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nabout: x\n")
    with pytest.raises(ConfigError, match=r"base\.yaml:7: lora\.r: expected a whole number above 0"):
        resolve(str(tmp_path / "mine.yaml"))


def test_a_longer_cycle_and_a_long_chain(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("name: b\nextends: a.yaml\n")
    with pytest.raises(ConfigError, match=r"b\.yaml:2: .*leads back"):
        resolve(str(tmp_path / "a.yaml"))
    for i in range(9):
        (tmp_path / f"{i}.yaml").write_text(f"extends: {i + 1}.yaml\n")
    with pytest.raises(ConfigError, match="more than 8 presets"):
        resolve(str(tmp_path / "0.yaml"))


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("", "there is no preset"),
        ("folder.yaml", "a directory"),
        ("gone.yaml", "no such file"),
        ("a" * 5000, "no preset"),
        ("a" * 5000 + ".yaml", "cannot be read"),
    ],
)
def test_not_a_file(path: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match=part):
        resolve(path)


def test_a_device_is_not_read():
    with pytest.raises(ConfigError, match="not a regular file"):
        resolve("/dev/zero")


def test_all_mistakes_are_listed(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD + "lora:\n  r: 0\n  rank: 4\ntrain:\n  learning_rate: fast\n  seed: -1\n")
    with pytest.raises(ConfigError) as caught:
        resolve(str(file), ["loss.beta=zero", "nonsense"])
    first, *rest = caught.value.message.split("\n")
    assert first == "6 mistakes in the configuration"
    assert len(rest) == 6
    for line in (7, 8, 10, 11):
        assert f"{file}:{line}: " in caught.value.message


def test_a_misspelt_key_is_reported_once(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: a\nmodel:\n  nmae: b\ndata:\n  name: c\n")
    with pytest.raises(ConfigError) as caught:
        resolve(str(file))
    assert caught.value.message == f"{file}:3: unknown key `model.nmae`"
    assert caught.value.hint == "did you mean `model.name`?"


# An override of `quickstart`, and parts of the error.
OVERRIDES = {
    "train.learning_rte=1": ["--set `train.learning_rte=1`", "did you mean `train.learning_rate`?"],
    "learning_rate=1e-4": ["unknown key `learning_rate`", "did you mean `train.learning_rate`?"],
    "learning_rat=1e-4": ["did you mean `train.learning_rate`?"],
    "revision=abc": ["`model.revision` or `data.revision`"],
    "train=1": ["`train` is a section", "train.learning_rate"],
    "train.learning_rate": ["expected section.key=value"],
    "=1": ["expected section.key=value"],
    "": ["expected section.key=value"],
    "train.learning_rate=": ["a number above 0", "nothing"],
    "train.learning_rate=fast": ["a number above 0", "`fast`"],
    "train.learning_rate=-1": ["a number above 0", "`-1`"],
    "train.learning_rate=nan": ["a number above 0", "`nan`"],
    "train.learning_rate=1e999": ["a number above 0"],
    "train.learning_rate=true": ["a number above 0"],
    "train.max_steps=1e3": ["a whole number above 0 or null", "`1000.0`"],
    "train.max_steps=12.5": ["a whole number above 0 or null"],
    "train.seed=null": ["a whole number at least 0"],
    "model.double_quant=yes": ["true or false", "`yes`"],
    "model.double_quant=1": ["true or false"],
    "train.seed=0042": ["YAML reads `0042` as `34`"],
    "train.seed=0x10": ["as `16`"],
    "train.seed=1_000": ["as `1000`"],
    "train.save_minutes=1:30": ["YAML reads `1:30` as `90`"],
    "train.learning_rate=.inf": ["`.inf`: expected a decimal number"],
    "train.learning_rate='1'": ["in quotes", "write 1 without quotes"],
    "model.dtype=bf16": ["one of auto, bfloat16, float16, float32"],
    "model.dtype=bfloat": ["did you mean `bfloat16`?"],
    "loss.loss_type=sigmod": ["loss.loss_type[0]", "did you mean `sigmoid`?"],
    "loss.loss_type=Hinge": ["did you mean `hinge`?"],
    "loss.loss_type=xyzzy": ["one of sigmoid, hinge"],
    "loss.loss_type=cdpo": ["`sigmoid` with label_smoothing above 0"],
    "loss.loss_type=aot_pair": ["renamed it to `aot`"],
    "loss.loss_type=exo_pair": ["--set: loss: loss_type exo_pair takes the logarithm", "set label_smoothing: 0.001"],
    "loss.label_smoothing=0.5": ["a number at least 0 and below 0.5"],
    "loss.label_smoothing=nan": ["a number at least 0 and below 0.5"],
    "loss.beta=0": ["loss.beta: expected a number above 0"],
    "loss.discopop_tau=-1": ["loss.discopop_tau: expected a number above 0"],
    "loss.loss_weights=[-1, 1]": ["would train away"],
    "loss.loss_weights=[0, 0]": ["not all 0"],
    "loss.loss_weights=nan": ["loss.loss_weights[0]: expected a number"],
    "loss.f_divergence_type=kl": ["one of reverse_kl, forward_kl"],
    "loss.f_alpha_divergence_coef=nan": ["expected a number"],
    "loss.loss_type=hing": ["loss.loss_type[0]", "did you mean `hinge`?"],
    "loss.loss_type=[sigmoid, hing]": ["loss.loss_type[1]"],
    "loss.loss_type=[]": ["at least one item"],
    "loss.loss_type=": ["at least one item"],
    "loss.loss_type=[sigmoid": ["not a valid list"],
    "loss.loss_weights=[1, x]": ["loss.loss_weights[1]", "`x`"],
    "loss.loss_weights=[1, 2, 3]": ["one per loss"],
    "loss.loss_weights=&a [1]": [],
    "data.columns=question": ["a mapping of names to text"],
    "data.columns={a: b, a: c}": ["duplicate key `a`"],
    "data.columns={a: [b]}": ["data.columns.a", "text"],
    "train.report_to=tensorbord": ["did you mean `tensorboard`?"],
    "extends=garrulus-a40": ["belongs into a preset file"],
    "data.max_prompt_length=128": ["leaves no room"],
    "name=My Run": ["lower-case letters"],
    "model.name=": ["model.name"],
    "data.system=\x1b[2J": ["not text"],
    "data.system=\udcff": ["not text"],
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_faulty_override(override: str):
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        resolve("quickstart", [override])
    assert time.monotonic() - started < 1
    for part in OVERRIDES[override]:
        assert part in f"{caught.value.message}\n{caught.value.hint}"
