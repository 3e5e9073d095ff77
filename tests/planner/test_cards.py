"""Cards by the names that people, makers and drivers give them."""

from __future__ import annotations

import pytest

from qdpo import cpu
from qdpo.errors import UsageError
from qdpo.hardware import GIB, Device
from qdpo.planner import cards
from qdpo.planner.cards import CARDS, card_named, card_of


@pytest.mark.parametrize("key", CARDS)
def test_every_card_is_found_by_its_key_and_by_its_name(key: str) -> None:
    card = CARDS[key]
    for text in (key, key.upper(), key.replace("-", " "), card.name, card.name.lower(), card.name.replace(" ", "-")):
        assert card_named(text) is card, text


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("RTX 4090", "rtx4090"),
        ("4090", "rtx4090"),
        ("rtx_3090", "rtx3090"),
        ("geforce rtx 3060", "rtx3060"),
        ("RTX 3060 12GB", "rtx3060"),
        ("4060 ti", "rtx4060ti"),
        ("4060 Ti 16GB", "rtx4060ti"),
        ("a100 80gb", "a100-80"),
        ("A100", "a100"),
        ("v100", "v100"),
        ("v100 32GB", "v100-32"),
        ("rtx a6000", "a6000"),
        ("RTX PRO 6000", "rtx-pro-6000"),
        # as drivers report them
        ("Tesla T4", "t4"),
        ("Tesla P100-PCIE-16GB", "p100"),
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Tesla V100-SXM2-32GB", "v100-32"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100 80GB PCIe", "a100-80"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("H100-PCIE-80GB", "h100-pcie"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "rtx-pro-6000"),
    ],
)
def test_names_as_they_are_written(text: str, key: str) -> None:
    assert card_named(text) is CARDS[key]


@pytest.mark.parametrize(("text", "gib"), [("24GiB", 24), ("24GB", 24), ("24 gb", 24), ("24", 24), ("10.5", 10.5)])
def test_an_amount_of_memory(text: str, gib: float) -> None:
    assert card_named(text).memory == round(gib * GIB)


@pytest.mark.parametrize("text", ["4091", "300", "0", "-3", "1e9", "nan", "", "20000GiB"])
def test_a_number_without_a_unit_is_no_amount_beyond_any_card(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        card_named(text)
    assert "24GiB" in str(refused.value)


@pytest.mark.parametrize(("text", "near"), [("rtx409", "rtx4090"), ("t5", "t4"), ("h300", "h100"), ("a4000", "a40")])
def test_an_unknown_name_is_answered_with_the_nearest(text: str, near: str) -> None:
    with pytest.raises(UsageError) as refused:
        card_named(text)
    assert near in str(refused.value.hint).split(";")[0]


def test_a_size_that_a_card_does_not_have_is_not_taken() -> None:
    with pytest.raises(UsageError):
        card_named("t4 80GB")


def test_a_card_that_is_here_reports_its_own_memory() -> None:
    found = card_of(Device("cuda", "NVIDIA A100-SXM4-80GB", (8, 0), 79 * GIB))
    assert (found.memory, found.tflops, found.bandwidth) == (79 * GIB, 312, 2039e9)
    unknown = card_of(Device("cuda", "NVIDIA GeForce RTX 4090 Laptop GPU", (8, 9), 16 * GIB))
    assert unknown.memory == 16 * GIB
    assert "nearest" in unknown.source
    assert not card_of(Device("cuda", "Tesla T4", (7, 5), 15 * GIB)).bfloat16


def test_the_processor_is_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cores", lambda: 8)
    monkeypatch.setattr(cards, "memory_limit", lambda: 12 * GIB)
    speeds = []
    for flags in (set(), {"avx512f"}, {"avx512f", "avx512_bf16"}, {"avx512f", "avx512_bf16", "amx_bf16"}):
        monkeypatch.setattr(cpu, "flags", lambda flags=flags: flags)
        card = card_named("CPU")
        assert card.is_cpu
        assert card.memory == 12 * GIB
        assert card.bfloat16 == any("bf16" in flag for flag in flags)
        speeds.append(card.tflops)
    assert speeds == sorted(speeds)
    assert speeds[0] < speeds[-1]
