"""How an evaluation set on the hub is named: configuration and split."""

from types import SimpleNamespace

import pytest

from qdpo.data.quality import contamination


@pytest.mark.parametrize(
    ("name", "base", "split", "config"),
    [
        ("owner/name", "owner/name", contamination.EVALUATION_SPLITS[0], None),
        ("owner/name[dev]", "owner/name", "dev", None),
        ("owner/name:xl[dev]", "owner/name", "dev", "xl"),
        ("owner/name:xl#text", "owner/name", contamination.EVALUATION_SPLITS[0], "xl"),
    ],
)
def test_configuration_and_split_are_part_of_the_name(
    monkeypatch: pytest.MonkeyPatch, name: str, base: str, split: str, config: str | None
) -> None:
    asked = []

    def find_source(base: str, *, split: str = "train", config: str | None = None) -> SimpleNamespace:
        asked.append((base, split, config))
        return SimpleNamespace(rows=lambda: iter([{"text": "a line of an evaluation set"}]))

    monkeypatch.setattr(contamination, "find_source", find_source)
    (found,) = contamination.load_sets([name])
    assert asked == [(base, split, config)]
    assert found.items == ["a line of an evaluation set"]
