"""The GGUF types that a user can ask for, and which type each tensor then gets."""

from __future__ import annotations

from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as Type


@dataclass(frozen=True)
class Kind:
    """A GGUF type: how a file names itself, and the type of most of its tensors."""

    file_type: LlamaFileType
    type: Type

    @property
    def name(self) -> str:
        """As in file names: Q4_K_M."""
        return self.file_type.name.removeprefix("MOSTLY_").removeprefix("ALL_")


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
}
PLAIN = (Type.F32, Type.F16, Type.BF16)

# What llama.cpp takes when rows cannot be cut into super-blocks of 256.
_SMALLER_BLOCKS = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}


def tensor_type(kind: Kind, name: str, shape: tuple[int, ...], layers: int, shared_head: bool) -> Type:
    """The type of one tensor in a file, as llama.cpp's `llama_tensor_get_type` chooses it (MIT, see NOTICE).

    Args:
        kind: what the user asked for.
        name: the tensor's GGUF name, such as `blk.3.attn_v.weight`.
        shape: rows and columns, as in torch.
        layers: decoder blocks of the model.
        shared_head: whether the token embedding is the output head too.
    """
    if len(shape) == 1 or name.endswith("_norm.weight"):
        return Type.F32
    if kind.type in PLAIN:
        return kind.type
    wanted = _mix(kind, name, layers, shared_head)
    columns = shape[-1]
    if columns % _block(wanted):
        wanted = _SMALLER_BLOCKS.get(wanted, wanted)
    return wanted if columns % _block(wanted) == 0 else Type.F16


def _mix(kind: Kind, name: str, layers: int, shared_head: bool) -> Type:
    """More bits for the tensors that need them."""
    if name == ("token_embd.weight" if shared_head else "output.weight"):
        return Type.Q8_0 if kind.type is Type.Q8_0 else Type.Q6_K
    medium = kind.file_type in (LlamaFileType.MOSTLY_Q4_K_M, LlamaFileType.MOSTLY_Q5_K_M)
    small = kind.file_type is LlamaFileType.MOSTLY_Q4_K_S
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    wanted = kind.type
    if name.endswith(("attn_v.weight", "attn_qkv.weight")):
        if medium and _more_bits(layer, layers):
            wanted = Type.Q6_K
        elif small and layer < 4:
            wanted = Type.Q5_K
        if layers == 80 and wanted is Type.Q4_K:
            wanted = Type.Q5_K  # the 70B models: eight query heads share a value head, so these bits are cheap
    elif name.endswith("ffn_down.weight"):
        if medium and _more_bits(layer, layers):
            wanted = Type.Q6_K
        elif small and layer < layers // 8:
            wanted = Type.Q5_K
    return wanted


def _more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def stored_bytes(kind: Type, weights: int) -> int:
    """Bytes of a tensor in a file, without padding."""
    block, size = GGML_QUANT_SIZES[kind]
    return weights // int(block) * int(size)


def _block(kind: Type) -> int:
    return int(GGML_QUANT_SIZES[kind][0])
