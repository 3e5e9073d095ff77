"""Values and origins through a chain of presets and overrides, and back from YAML."""

from pathlib import Path

import pytest

from qdpo.config import presets
from qdpo.config.fields import settings
from qdpo.config.resolve import resolve, to_yaml, value_of

MINE = "extends: garrulus-a40\nname: mine\nloss:\n  beta: 0.3\n"


def test_layers_and_their_origins(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    resolved = resolve(str(file), ["train.learning_rate=5e-6", "train.learning_rate=2e-6"])
    assert (resolved.config.loss.beta, resolved.origins["loss.beta"]) == (0.3, f"{file}:4")
    assert resolved.config.train.learning_rate == 2e-6
    assert resolved.origins["train.learning_rate"] == "--set"
    assert resolved.config.lora.r == 16
    assert resolved.origins["lora.r"].startswith("presets/garrulus-a40.yaml:")
    assert resolved.origins["train.keep"] == "default"
    assert list(resolved.origins) == list(settings())


def test_an_origin_is_the_line_of_its_key():
    origin = resolve("garrulus-t4").origins["train.warmup_steps"]
    name, _, line = origin.rpartition(":")
    assert name == "presets/garrulus-a40.yaml"
    text = (presets.directory() / "garrulus-a40.yaml").read_text()
    assert text.splitlines()[int(line) - 1].strip().startswith("warmup_steps: 100")


def test_extends_a_file_beside_and_a_file_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.yaml").write_text(MINE)
    (tmp_path / "sub" / "a.yaml").write_text("extends: ../base.yaml\nname: a\n")
    monkeypatch.chdir(tmp_path)
    resolved = resolve("sub/a.yaml")
    assert (resolved.config.name, resolved.config.loss.beta) == ("a", 0.3)
    assert resolved.origins["name"] == "sub/a.yaml:2"


def test_lists_are_replaced_as_a_whole(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(MINE + "lora:\n  target_modules: [q_proj]\n")
    assert resolve(str(file)).config.lora.target_modules == ["q_proj"]


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.learning_rate=5e-6", "train.learning_rate", 5e-6),
        ("train.learning_rate=1", "train.learning_rate", 1.0),
        ("train.learning_rate=.5", "train.learning_rate", 0.5),
        ("train.learning_rate=1.", "train.learning_rate", 1.0),
        (" train.seed = 7", "train.seed", 7),
        ("train.seed=007", "train.seed", 7),
        ("train.max_steps=null", "train.max_steps", None),
        ("model.double_quant=False", "model.double_quant", False),
        ("model.revision=null", "model.revision", None),
        ("model.revision=1234567", "model.revision", "1234567"),
        ("model.name=null", "model.name", "null"),
        ("model.name=a=b", "model.name", "a=b"),
        ("data.split=train[:5%]", "data.split", "train[:5%]"),
        ("data.system=yes", "data.system", "yes"),
        ("data.system=", "data.system", ""),
        ("data.system= two\nlines: [x] # y", "data.system", " two\nlines: [x] # y"),
        ("loss.loss_type=discopop", "loss.loss_type", ["discopop"]),
        ("loss.loss_type=sigmoid, sft", "loss.loss_type", ["sigmoid", "sft"]),
        ("loss.loss_type=[sigmoid]", "loss.loss_type", ["sigmoid"]),
        ("loss.loss_weights=[5e-1]", "loss.loss_weights", [0.5]),
        ("loss.loss_weights=1", "loss.loss_weights", [1.0]),
        ("train.report_to=", "train.report_to", []),
        ("train.report_to=[]", "train.report_to", []),
        ("notes=[1, yes, 'a, b']", "notes", ["1", "yes", "a, b"]),
        ("data.columns={prompt: question}", "data.columns", {"prompt": "question"}),
        ("data.columns.prompt=no", "data.columns", {"prompt": "no"}),
    ],
)
def test_override(override: str, key: str, value: object):
    resolved = resolve("dpo", [override])
    assert value_of(resolved.config, key) == value
    assert resolved.origins[key] == "--set"


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-6", 5e-6), ("5.0e6", 5e6), ("5E+2", 500.0), ("1e3", 1000.0), (".5", 0.5), ("1.", 1.0), ("007", 7.0)],
)
def test_a_number_is_the_same_in_a_file_and_in_an_override(text: str, value: float, tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"{MINE}train:\n  learning_rate: {text}\n")
    assert resolve(str(file)).config.train.learning_rate == value
    assert resolve("dpo", [f"train.learning_rate={text}"]).config.train.learning_rate == value


def test_override_of_a_mapping_entry_keeps_the_others(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(MINE + "data:\n  columns: {prompt: p, chosen: c}\n")
    resolved = resolve(str(file), ["data.columns.prompt=question"])
    assert resolved.config.data.columns == {"prompt": "question", "chosen": "c"}


@pytest.mark.parametrize("name", presets.names())
def test_yaml_resolves_to_the_same_configuration(name: str, tmp_path: Path):
    resolved = resolve(name)
    text = to_yaml(resolved)
    (tmp_path / "again.yaml").write_text(text)
    again = resolve(str(tmp_path / "again.yaml"))
    assert again.config == resolved.config
    assert not {key for key, origin in again.origins.items() if origin == "default"}
    for origin in resolved.origins.values():
        assert f"# {origin}" in text


@pytest.mark.parametrize(
    "value",
    [
        "yes",
        "null",
        "5e-6",
        "12e4567",
        "007",
        "a: b # c",
        "two\nlines",
        "\ttab",
        "'",
        '"',
        "- x",
        "é 中 🎉",
        " padded ",
        "x" * 5000,
        "\u2028",
    ],
)
def test_any_text_survives_yaml(value: str, tmp_path: Path):
    resolved = resolve("quickstart", [f"data.system={value}", "train.learning_rate=5e-6"])
    (tmp_path / "again.yaml").write_text(to_yaml(resolved), encoding="utf-8")
    assert resolve(str(tmp_path / "again.yaml")).config == resolved.config


def test_a_file_name_cannot_end_a_comment(tmp_path: Path):
    file = tmp_path / "a\nname: b.yaml"
    file.write_text(MINE)
    (tmp_path / "again.yaml").write_text(to_yaml(resolve(str(file))))
    assert resolve(str(tmp_path / "again.yaml")).config.name == "mine"


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + MINE.replace("\n", "\r\n").encode())
    resolved = resolve(str(file))
    assert (resolved.config.loss.beta, resolved.origins["loss.beta"]) == (0.3, f"{file}:4")


def test_a_shipped_name_wins_over_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text(MINE)
    assert resolve("quickstart").config.name == "quickstart"
    assert resolve("./quickstart").config.name == "mine"


def test_every_setting_says_what_it_means_and_accepts():
    for setting in settings().values():
        assert setting.meaning, setting.key
        assert setting.expected, setting.key
