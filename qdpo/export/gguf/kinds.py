"""The GGUF types that a user can ask for, and which type each tensor then gets."""

from __future__ import annotations

from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as Type

from qdpo.errors import UsageError


@dataclass(frozen=True)
class Kind:
    """A GGUF type: how a file names itself, and the type of most of its tensors."""

    file_type: LlamaFileType
    type: Type

    @property
    def name(self) -> str:
        """As in file names: Q4_K_M."""
        return self.file_type.name.removeprefix("MOSTLY_").removeprefix("ALL_")


@dataclass(frozen=True)
class Traits:
    """What llama.cpp's choice of types depends on beside a tensor's name and shape.

    Attributes:
        layers: decoder blocks of the model.
        shared_head: whether the token embedding is the output head too.
        sharing: query heads that share a value head.
        importance: whether there is an importance matrix.
    """

    layers: int
    shared_head: bool
    sharing: int = 1
    importance: bool = False


KINDS = {
    "f32": Kind(LlamaFileType.ALL_F32, Type.F32),
    "f16": Kind(LlamaFileType.MOSTLY_F16, Type.F16),
    "bf16": Kind(LlamaFileType.MOSTLY_BF16, Type.BF16),
    "q8_0": Kind(LlamaFileType.MOSTLY_Q8_0, Type.Q8_0),
    "q6_k": Kind(LlamaFileType.MOSTLY_Q6_K, Type.Q6_K),
    "q5_k_m": Kind(LlamaFileType.MOSTLY_Q5_K_M, Type.Q5_K),
    "q5_k_s": Kind(LlamaFileType.MOSTLY_Q5_K_S, Type.Q5_K),
    "q5_1": Kind(LlamaFileType.MOSTLY_Q5_1, Type.Q5_1),
    "q5_0": Kind(LlamaFileType.MOSTLY_Q5_0, Type.Q5_0),
    "q4_k_m": Kind(LlamaFileType.MOSTLY_Q4_K_M, Type.Q4_K),
    "q4_k_s": Kind(LlamaFileType.MOSTLY_Q4_K_S, Type.Q4_K),
    "q4_1": Kind(LlamaFileType.MOSTLY_Q4_1, Type.Q4_1),
    "q4_0": Kind(LlamaFileType.MOSTLY_Q4_0, Type.Q4_0),
    "iq4_nl": Kind(LlamaFileType.MOSTLY_IQ4_NL, Type.IQ4_NL),
    "iq4_xs": Kind(LlamaFileType.MOSTLY_IQ4_XS, Type.IQ4_XS),
    "q3_k_l": Kind(LlamaFileType.MOSTLY_Q3_K_L, Type.Q3_K),
    "q3_k_m": Kind(LlamaFileType.MOSTLY_Q3_K_M, Type.Q3_K),
    "q3_k_s": Kind(LlamaFileType.MOSTLY_Q3_K_S, Type.Q3_K),
    "q2_k": Kind(LlamaFileType.MOSTLY_Q2_K, Type.Q2_K),
    "q2_k_s": Kind(LlamaFileType.MOSTLY_Q2_K_S, Type.Q2_K),
}
PLAIN = (Type.F32, Type.F16, Type.BF16)

# What llama.cpp takes when rows cannot be cut into super-blocks of 256.
_SMALLER_BLOCKS = {
    Type.IQ4_XS: Type.IQ4_NL,
    Type.Q2_K: Type.Q4_0,
    Type.Q3_K: Type.Q4_0,
    Type.Q4_K: Type.Q5_0,
    Type.Q5_K: Type.Q5_1,
    Type.Q6_K: Type.Q8_0,
}


def tensor_type(kind: Kind, name: str, shape: tuple[int, ...], model: Traits) -> Type:
    """The type of one tensor in a file, as llama.cpp's `llama_tensor_get_type` chooses it (MIT, see NOTICE).

    Args:
        kind: what the user asked for.
        name: the tensor's GGUF name, such as `blk.3.attn_v.weight`.
        shape: rows and columns, as in torch.
        model: what else the choice depends on.

    Raises:
        UsageError: the type needs an importance matrix and there is none.
    """
    if len(shape) == 1 or name.endswith("_norm.weight"):
        return Type.F32
    if kind.type in PLAIN:
        return kind.type
    wanted = _mix(kind.file_type, kind.type, name, model)
    columns = shape[-1]
    if columns % _block(wanted):
        wanted = _SMALLER_BLOCKS.get(wanted, wanted)
    if columns % _block(wanted):
        return Type.F16
    blindly = wanted is Type.Q2_K and not model.importance and name.startswith("blk.")
    if blindly and kind.file_type is LlamaFileType.MOSTLY_Q2_K_S:
        raise UsageError("q2_k_s needs an importance matrix", "collect or give one, or export q2_k")
    return wanted


def _mix(file: LlamaFileType, usual: Type, name: str, model: Traits) -> Type:
    """More bits for the tensors that need them."""
    if name == ("token_embd.weight" if model.shared_head else "output.weight"):
        return Type.Q8_0 if usual is Type.Q8_0 else Type.Q6_K
    if not name.startswith("blk."):
        return usual
    layer = int(name.split(".")[1])
    if name.endswith(("attn_v.weight", "attn_qkv.weight")):
        wanted = _value(file, layer, model) or usual
        if model.layers == 80 and wanted in (Type.Q3_K, Type.Q4_K):
            return Type.Q5_K  # the 70B models: eight query heads share a value head, so these bits are cheap
        return wanted
    if name.endswith("ffn_down.weight"):
        return _down(file, layer, model) or usual
    if name.endswith("attn_output.weight"):
        return _ATTENTION_OUTPUT.get(file, usual)
    return usual


_ATTENTION_OUTPUT = {
    LlamaFileType.MOSTLY_Q2_K: Type.Q3_K,
    LlamaFileType.MOSTLY_Q3_K_M: Type.Q4_K,
    LlamaFileType.MOSTLY_Q3_K_L: Type.Q5_K,
}


def _value(file: LlamaFileType, layer: int, model: Traits) -> Type | None:
    """What values, alone or with queries and keys, get instead of the usual type."""
    much_shared = model.sharing >= 4
    match file:
        case LlamaFileType.MOSTLY_Q2_K:
            return Type.Q4_K if much_shared else Type.Q3_K
        case LlamaFileType.MOSTLY_Q2_K_S if much_shared:
            return Type.Q4_K
        case LlamaFileType.MOSTLY_Q3_K_M:
            return Type.Q5_K if layer < 2 else Type.Q4_K
        case LlamaFileType.MOSTLY_Q3_K_L:
            return Type.Q5_K
        case LlamaFileType.MOSTLY_IQ4_NL | LlamaFileType.MOSTLY_IQ4_XS if much_shared:
            return Type.Q5_K
        case LlamaFileType.MOSTLY_Q4_K_S if layer < 4:
            return Type.Q5_K
        case LlamaFileType.MOSTLY_Q4_K_M | LlamaFileType.MOSTLY_Q5_K_M if _more_bits(layer, model.layers):
            return Type.Q6_K
    return None


def _down(file: LlamaFileType, layer: int, model: Traits) -> Type | None:
    """What the MLP's way down gets instead of the usual type."""
    first = layer < model.layers // 8
    match file:
        case LlamaFileType.MOSTLY_Q2_K:
            return Type.Q3_K
        case LlamaFileType.MOSTLY_Q2_K_S if first:
            return Type.Q4_K
        case LlamaFileType.MOSTLY_Q3_K_M:
            return Type.Q5_K if layer < model.layers // 16 else Type.Q4_K
        case LlamaFileType.MOSTLY_Q3_K_L:
            return Type.Q5_K
        case LlamaFileType.MOSTLY_IQ4_NL | LlamaFileType.MOSTLY_IQ4_XS if first and not model.importance:
            return Type.Q5_K
        case LlamaFileType.MOSTLY_Q4_K_S if first:
            return Type.Q5_K
        case LlamaFileType.MOSTLY_Q4_K_M | LlamaFileType.MOSTLY_Q5_K_M if _more_bits(layer, model.layers):
            return Type.Q6_K
        case LlamaFileType.MOSTLY_Q4_0 if first and model.importance:
            return Type.Q4_1
        case LlamaFileType.MOSTLY_Q5_0 if first and model.importance:
            return Type.Q5_1
    return None


def _more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def stored_bytes(kind: Type, weights: int) -> int:
    """Bytes of a tensor in a file, without padding."""
    block, size = GGML_QUANT_SIZES[kind]
    return weights // int(block) * int(size)


def _block(kind: Type) -> int:
    return int(GGML_QUANT_SIZES[kind][0])
