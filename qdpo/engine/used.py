"""What a step truly ran: which adapted layers went through their fused function, and in which types products were made.

The fused functions are installed at the start, but whether one runs is decided at every call, by the types that it is
given. A run that was promised them and does without is slower by a third and takes twice the memory, with the same
loss: nothing else would show it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from qdpo.engine.fuse import Fusion
from qdpo.errors import TrainingError

PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm"}


class Products(TorchDispatchMode):
    """Counts the matrix products of what runs inside, backward passes included.

    An outer product (an inner dimension of 1, as rotary embeddings have it) is none.

    Attributes:
        counts: by the types of the operands.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            # the matrix that is added to comes first
            left, right = [value for value in args if isinstance(value, Tensor)]["add" in name :][:2]
            if left.shape[-1] > 1:
                self.counts[" x ".join(sorted({str(t.dtype).removeprefix("torch.") for t in (left, right)}))] += 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Used:
    """What one step ran.

    Attributes:
        fused: calls of fused functions by kind, `lora` and `mlp`.
        plain: calls of the same modules in the form that PEFT and transformers gave them.
        products: matrix products by type.
    """

    fused: dict[str, int]
    plain: dict[str, int]
    products: dict[str, int]

    @classmethod
    def of(cls, fusion: Fusion, products: Products) -> Used:
        """What was counted since the counts were last cleared."""
        calls = fusion.calls
        return cls(
            {kind: calls[kind] for kind in ("lora", "mlp") if calls[kind]},
            {kind: calls[f"{kind} plain"] for kind in ("lora", "mlp") if calls[f"{kind} plain"]},
            dict(products.counts),
        )

    def as_dict(self) -> dict[str, Any]:
        """For run.json."""
        return asdict(self)

    def text(self) -> str:
        """In words."""
        names = {"lora": "LoRA linears", "mlp": "gated MLPs"}
        fused = " and ".join(f"{count:,} {names[kind]}" for kind, count in self.fused.items()) or "nothing"
        plain = [f"{count:,} {names[kind]} not" for kind, count in self.plain.items()]
        products = [f"{count:,} in {name}" for name, count in sorted(self.products.items(), key=lambda item: -item[1])]
        return f"{', '.join([f'{fused} ran as one function', *plain])}; products: {', '.join(products) or 'none'}"


def check_used(model: nn.Module, fusion: Fusion, used: Used) -> None:
    """Hold a step to what was promised when the functions were installed.

    Adapters with dropout are not fused while it is on, and nothing is promised of them.

    Raises:
        TrainingError: modules that are fused did not run as one function.
    """
    promised = fusion.counts["lora"] + fusion.counts["mlp"]
    dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    if not promised or dropout or (used.fused and not used.plain):
        return
    raise TrainingError(
        f"{promised} modules are fused, but not all of them ran so in the first step: {used.text()}",
        "set packing.fused_lora and packing.fused_mlp to false to train without, which is slower and takes more "
        "memory; and report it with what qdpo doctor says",
    )
