"""`qdpo presets`: the list, one resolved, and a copy to edit."""

from pathlib import Path

import pytest

from qdpo.cli.main import main
from qdpo.config import presets
from qdpo.config.fields import settings
from qdpo.config.resolve import resolve


@pytest.mark.parametrize("argv", [["presets"], ["presets", "list"]])
def test_list(argv: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(argv) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "base", "data", "card", "it", "fits", "GPU", "memory"]
    assert [row.split()[0] for row in rows] == presets.names()
    row = next(row for row in rows if row.startswith("garrulus-t4"))
    for part in ("mlabonne/NeuralMarcoro14-7B", "allenai/winogrande", "NVIDIA T4 (16 GB)", "15 GiB"):
        assert part in row


def test_show_explains_every_value(capsys: pytest.CaptureFixture[str]):
    assert main(["presets", "show", "garrulus-t4", "--set", "loss.beta=0.3"]) == 0
    said = capsys.readouterr().out
    for setting in settings().values():
        assert f"{setting.key}:" in said
        assert setting.meaning in said
    assert "model.dtype: float16  [presets/garrulus-t4.yaml:" in said
    assert "lora.r: 16  [presets/garrulus-a40.yaml:" in said
    assert "loss.beta: 0.3  [--set]" in said
    assert "train.keep: 2  [default]" in said
    for note in resolve("garrulus-t4").config.notes:
        assert f"  - {note}" in said


def test_show_as_yaml_is_a_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["presets", "show", "discopop-zephyr-7b-gemma", "--yaml"]) == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    assert resolve(str(tmp_path / "again.yaml")).config == resolve("discopop-zephyr-7b-gemma").config


def test_show_nothing_like_it(capsys: pytest.CaptureFixture[str]):
    assert main(["presets", "show", "garulus-a40"]) == 78
    assert "did you mean `garrulus-a40`?" in capsys.readouterr().err
    assert main(["presets", "show"]) == 64
    assert main(["presets", "shwo"]) == 64


@pytest.mark.parametrize("name", presets.names())
def test_a_copy_keeps_comments_and_meaning(name: str, tmp_path: Path):
    target = tmp_path / "mine.yaml"
    assert main(["presets", "copy", name, str(target)]) == 0
    assert target.read_text() == (presets.directory() / f"{name}.yaml").read_text()
    assert resolve(str(target)).config == resolve(name).config


def test_a_copy_of_a_copy_still_finds_what_it_extends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("deep/er").mkdir(parents=True)
    Path("base.yaml").write_text("extends: quickstart\nname: base\n")
    Path("deep/mine.yaml").write_text("extends: ../base.yaml  # the lab's\nname: mine\n")
    for target in ("copy.yaml", "deep/er/copy.yaml"):
        assert main(["presets", "copy", "deep/mine.yaml", target]) == 0
        assert resolve(target).config.name == "mine"
        assert "# the lab's" in Path(target).read_text()
    assert Path("copy.yaml").read_text().startswith("extends: base.yaml  #")


def test_a_copy_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "mine.yaml"
    target.write_text("precious")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "gone.yaml")
    for path in (target, tmp_path, tmp_path / "link.yaml", tmp_path / "no" / "folder.yaml"):
        assert main(["presets", "copy", "quickstart", str(path)]) == 73
    assert target.read_text() == "precious"
    assert not (tmp_path / "gone.yaml").exists()
    assert f"{target} exists and is left as it is" in capsys.readouterr().err


def test_a_copy_without_an_ending_is_named_as_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["presets", "copy", "quickstart", "mine too"]) == 0
    assert "qdpo train --preset './mine too'" in capsys.readouterr().err
    assert resolve("./mine too").config.name == "quickstart"
