"""Nothing in the package is unused: each name is read by it, its tests or benchmarks, or by whom is said here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

vulture = pytest.importorskip("vulture", reason="finds dead code (pip install 'qdpo[test]')")

ROOT = Path(__file__).resolve().parent.parent

OTHERS = {
    # by Python, argparse, signal and io
    *("__getattr__", "__dir__", "_action_max_length", "frame", "trace", "kw", "readable"),
    # by http.server
    *("daemon_threads", "server_version", "sys_version", "do_GET", "do_POST", "log_message"),
    # by rich
    "on_broken_pipe",
    # by `asdict`
    "purpose",
    # by PEFT, compressed-tensors and llmcompressor
    *("base_model_name_or_path", "_name_or_path", "group_size"),
    # by transformers' loader
    "get_dtype",
    # by PEFT and torch's modes
    *("is_loaded_in_4bit", "quant_storage", "_should_skip_dynamo"),
    # by TRL's trainer
    "_prepare_dataset",
    # by jinja2
    "tags",
    # by their names in the table of export formats
    *("GgufTarget", "LoraTarget"),
    # by whoever reads run.json
    *("memory_bytes", "template_sha256", "config_sha256", "trainable_parameters", "start_sha256"),
    *("gradient_difference", "largest_difference"),
}
"""Names that somebody else reads or calls."""

TEMPLATES = {
    word
    for path in (ROOT / "qdpo" / "report" / "templates").glob("*.jinja")
    for word in re.findall(r"[a-z_]+", path.read_text())
}
"""What the card and the page read."""


def unused(package: Path, *users: Path) -> list[str]:
    """What a package defines and neither it nor its users name: `file:line name`."""
    finder = vulture.Vulture(ignore_decorators=["@field_validator", "@model_validator"])
    finder.scavenge([str(path) for path in (package, *users)])
    found: Iterable[vulture.core.Item] = finder.get_unused_code(min_confidence=60)
    inside = [item for item in found if package in Path(item.filename).resolve().parents]
    return [
        f"{Path(item.filename).name}:{item.first_lineno} {item.name}"
        for item in inside
        if item.name not in OTHERS | TEMPLATES
    ]


def test_nothing_in_the_package_is_unused() -> None:
    users = [ROOT / name for name in ("tests", "benchmarks", "tools", "examples") if (ROOT / name).is_dir()]
    assert unused(ROOT / "qdpo", *users) == []


def test_what_is_unused_is_seen(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    module = tmp_path / "package" / "module.py"
    module.write_text("def used():\n    return 1\n\ndef forgotten():\n    return 2\n")
    (tmp_path / "user.py").write_text("from package.module import used\n\nused()\n")
    assert unused(tmp_path / "package", tmp_path / "user.py") == ["module.py:4 forgotten"]
