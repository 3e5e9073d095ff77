"""How much memory a verification takes, by shapes; tests/export/test_verify_memory.py measures it."""

from __future__ import annotations

import dataclasses

from qdpo.model.stream_memory import PROCESS_BYTES, Sizes, card_memory, verification_memory

GIB = 1 << 30


def mistral_7b(layers: int = 32) -> dict[str, tuple[int, ...]]:
    """Names and shapes as Mistral-7B's files have them."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (32000, 4096),
        "lm_head.weight": (32000, 4096),
        "model.norm.weight": (4096,),
    }
    parts = {"self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (1024, 4096), "self_attn.v_proj": (1024, 4096)}
    parts |= {"self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (14336, 4096), "mlp.up_proj": (14336, 4096)}
    parts |= {"mlp.down_proj": (4096, 14336), "input_layernorm": (4096,), "post_attention_layernorm": (4096,)}
    for i in range(layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in parts.items()}
    return shapes


def test_sizes_are_those_of_the_files() -> None:
    sizes = Sizes.of(mistral_7b())
    assert sizes == Sizes(layer=218_112_000, tensor=14336 * 4096, embedding=32000 * 4096, everything=7_241_732_096)


def test_a_7b_takes_less_than_3_gib_whatever_its_layers() -> None:
    needed = verification_memory(Sizes.of(mistral_7b()), 4, on_card=False)
    assert PROCESS_BYTES < needed < 3 * GIB
    assert needed == verification_memory(Sizes.of(mistral_7b(64)), 4, on_card=False)
    assert verification_memory(Sizes.of(mistral_7b()), 4, on_card=False, held=0) <= needed


def test_wider_parts_take_more() -> None:
    sizes = Sizes.of(mistral_7b())
    needed = verification_memory(sizes, 4, on_card=False)
    for wider in ({"layer": 4 * sizes.layer}, {"tensor": 4 * sizes.tensor}, {"embedding": 4 * sizes.embedding}):
        assert verification_memory(dataclasses.replace(sizes, **wider), 4, on_card=False) > needed, wider


def test_on_a_card_the_layers_are_not_the_hosts() -> None:
    sizes = dataclasses.replace(Sizes.of(mistral_7b()), layer=2_000_000_000)
    on_card = verification_memory(sizes, 2, on_card=True)
    assert on_card < verification_memory(sizes, 2, on_card=False)
    assert card_memory(sizes, 2, 0) > 2 * sizes.layer


def test_a_t4_has_room_for_a_7b() -> None:
    """Which writes its sample answers there in 4 bits."""
    assert card_memory(Sizes.of(mistral_7b()), 2, 1 << 30) < 14.5 * GIB
