"""Which layers become 4 bits wide, in groups of how many columns, and in which layout they are stored."""

from __future__ import annotations

from dataclasses import dataclass

from qdpo.console import note
from qdpo.errors import InputMissingError
from qdpo.export.awq.packing import PER_WORD
from qdpo.export.formats import Layout
from qdpo.export.merged import MergedModel

GROUPS = (128, 64, 32)
"""Columns that share a scale, best first. 128 is AWQ's own and what kernels are written for: a scale and a zero point
then cost 0.16 bit per weight. A group must divide a layer's width, so narrow models get 64 or 32."""

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Plan:
    """How a model is quantised.

    Attributes:
        layout: how the layers are stored.
        group: columns that share a scale, one figure for the whole model.
        layers: names of the linear layers that become 4 bits wide.
        kept: names of those that stay in 16 bits because of their shape; the head always stays.
    """

    layout: Layout
    group: int
    layers: tuple[str, ...]
    kept: tuple[str, ...]


def plan_layers(model: MergedModel, layout: Layout) -> Plan:
    """Choose group size and layers by shape.

    Raises:
        InputMissingError: no layer can be cut into groups.
    """
    shapes = {
        name.removesuffix(".weight"): model.shape(name)
        for name in model.names
        if name.endswith(".weight") and name.split(".")[-2] in PROJECTIONS
    }
    layers = {name: shape for name, shape in shapes.items() if _fits(shape, layout)}
    if not layers:
        raise InputMissingError(
            f"none of the {len(shapes)} linear layers is a multiple of {GROUPS[-1]} wide: AWQ has no groups for them",
            "export gguf instead, whose types fall back by tensor",
        )
    group = next(size for size in GROUPS if all(shape[1] % size == 0 for shape in layers.values()))
    kept = tuple(sorted(shapes.keys() - layers.keys()))
    if kept:
        shape = shapes[kept[0]]
        note(f"{len(kept)} layers stay in 16 bits because of their shape (first: {kept[0]}, {shape[0]} x {shape[1]})")
    return Plan(layout, group, tuple(layers), kept)


def _fits(shape: tuple[int, ...], layout: Layout) -> bool:
    """Whether columns can be cut into groups, and rows into AutoAWQ's words of eight."""
    rows, columns = shape
    return columns % GROUPS[-1] == 0 and (layout != "autoawq" or rows % PER_WORD == 0)
