"""The merged model as a source of tensors: computed when asked for, one at a time.

Every format reads from here, so that each rounds the merged float32 values once, to its own precision.
"""

from __future__ import annotations

from typing import Any

import torch

from qdpo.errors import InputMissingError
from qdpo.model.adapter import Adapter
from qdpo.model.grid_file import Grids, placed
from qdpo.model.nf4 import Quantization
from qdpo.model.tensors import TensorSource, is_finite, is_rotary

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class MergedModel:
    """Base and adapter, merged tensor by tensor.

    Args:
        config: the base's `config.json`.
        base: the base's tensors, in 16 or 32 bit, or rounded as in training and dequantised.
        adapter: the trained adapter; None gives the base alone.
        trained_on: how the base was quantised in training; None merges into the base as it is on disk.
        grids: that the training saw the merged weights on; None for none.

    Raises:
        InputMissingError: base and adapter do not belong together.

    Attributes:
        config: what `config.json` of the merged model says.
        names: tensors of the merged model, in the base's order.
        grids: see above.
    """

    def __init__(
        self,
        config: dict[str, Any],
        base: TensorSource,
        adapter: Adapter | None,
        trained_on: Quantization | None,
        grids: Grids | None = None,
    ) -> None:
        self.config = {key: value for key, value in config.items() if key != "quantization_config"}
        self._base, self._adapter, self._trained_on, self.grids = base, adapter, trained_on, grids
        if config.get("quantization_config"):
            method = config["quantization_config"].get("quant_method", "unknown")
            raise InputMissingError(
                f"the base is stored quantised ({method}); a merge needs its 16-bit weights",
                "train and export from the 16-bit checkpoint of the same model",
            )
        self.names = [name for name in base if not is_rotary(name)]
        self._settle_tied_head()
        self._settle_vocabulary()
        self._check_names()

    def _settle_tied_head(self) -> None:
        """Decide whether embedding and head are one tensor after the merge."""
        if not self.config.get("tie_word_embeddings"):
            return
        changed = self._adapter.changed if self._adapter else set()
        differ = HEAD in self._base and not torch.equal(self._base.read(HEAD), self._base.read(EMBEDDING))
        one_sided = differ or (bool(changed & {HEAD, EMBEDDING}) and not self._changed_alike())
        if not one_sided:
            self.names = [name for name in self.names if name != HEAD]
        elif HEAD not in self.names:
            self.names.append(HEAD)
        self.config["tie_word_embeddings"] = not one_sided

    def _changed_alike(self) -> bool:
        """Whether the adapter leaves a tied embedding and head equal."""
        assert self._adapter is not None
        adapter, replaced = self._adapter, self._adapter.replaced
        if adapter.touches(HEAD) or adapter.touches(EMBEDDING):
            return False
        if HEAD in replaced and EMBEDDING in replaced:
            return torch.equal(adapter.replacement(HEAD), adapter.replacement(EMBEDDING))
        # One of them alone: a resize replaces the shared tensor, while `modules_to_save` trains a copy of one.
        alone = HEAD if HEAD in replaced else EMBEDDING
        resized = adapter.replaced_shape(alone) != self._base.places[EMBEDDING].shape
        return resized and not adapter.config.get("modules_to_save")

    def _settle_vocabulary(self) -> None:
        rows = {name: self.shape(name)[0] for name in (EMBEDDING, HEAD) if name in self.names}
        if len(set(rows.values())) > 1:
            raise InputMissingError(
                f"after the merge the embedding has {rows[EMBEDDING]} rows and the head {rows[HEAD]}",
                "the vocabulary was resized on one side only; the adapter cannot be exported",
            )
        if rows and "vocab_size" in self.config:
            self.config["vocab_size"] = next(iter(rows.values()))

    def _check_names(self) -> None:
        known = set(self.names)
        if self._adapter and (lost := sorted(self._adapter.changed - known - {HEAD, EMBEDDING})):
            biases = [name for name in lost if name.endswith(".bias")]
            raise InputMissingError(
                f"{len(lost)} of the adapter's tensors have no counterpart in the base (first: {lost[0]})",
                "a bias was trained where the base has none (lora_bias)"
                if biases
                else "the adapter was trained on another base",
            )
        modules = self._trained_on.modules if self._trained_on else frozenset()
        if lost := sorted(name for name in modules if f"{name}.weight" not in known):
            raise InputMissingError(
                f"{len(lost)} of the {len(modules)} layers that run.json lists as quantised are not in the base "
                f"(first: {lost[0]})",
                "the base on disk is not the one that was trained",
            )

    @property
    def changed(self) -> set[str]:
        """Names of the tensors that the adapter changes."""
        changed = self._adapter.changed if self._adapter else set()
        shared = {EMBEDDING} if changed & {HEAD, EMBEDDING} and HEAD not in self.names else set()
        return (changed & set(self.names)) | shared

    def _source(self, name: str) -> str:
        """The base tensor that a merged tensor starts from (an untied head starts from the embedding)."""
        return EMBEDDING if name == HEAD and HEAD not in self._base else name

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a merged tensor."""
        if self._adapter and (stand_in := self._stand_in(name)):
            return self._adapter.replaced_shape(stand_in)
        return self._base.places[self._source(name)].shape

    def _stand_in(self, name: str) -> str | None:
        """The name under which the adapter holds a replacement for a tensor: a tied pair has either."""
        tied = self.config.get("tie_word_embeddings") and name == EMBEDDING
        replaced = self._adapter.replaced if self._adapter else {}
        return next((one for one in ((EMBEDDING, HEAD) if tied else (name,)) if one in replaced), None)

    def has(self, name: str) -> bool:
        """Whether the base's files have what a tensor is made of."""
        return self._source(name) in self._base

    def is_float(self, name: str) -> bool:
        """Whether a tensor holds numbers that a format may round (buffers of integers are kept as they are)."""
        return self._base.places[self._source(name)].dtype.is_floating_point

    def stored_dtype(self, name: str) -> torch.dtype:
        """The base's own dtype of a tensor."""
        return self._base.places[self._source(name)].dtype

    def read(self, name: str) -> torch.Tensor:
        """A merged tensor in float32, on the CPU (integers: as stored).

        Raises:
            InputMissingError: it has values that are not finite, or the adapter does not fit.
        """
        if not self.is_float(name):
            return self._base.read(self._source(name))
        if self._stand_in(name):
            return self.adapted(name, None)
        # Before the rounding to 4 bits, which would hide it: the nearest of 16 values is finite.
        weight = require_finite(
            name, self._base.read(self._source(name)), "in the base", "the base is damaged: fetch it again"
        )
        base = self._trained_on.as_trained(name, weight) if self._trained_on else weight.float()
        grid = self.grids.of(name) if self.grids else None
        if grid is None:
            return self.adapted(name, base)
        adapter = self._adapter
        pair = adapter.pair(name) if adapter and adapter.touches(name) else None
        return placed(name, grid, base, pair, torch.float32)

    def adapted(self, name: str, weight: torch.Tensor | None) -> torch.Tensor:
        """What the adapter makes of a tensor of the base that has been read already, before any grid.

        Args:
            name: the merged tensor's.
            weight: the base's, float32 as the merge starts from, which may be changed; not used where the adapter has
                another in its place.

        Raises:
            InputMissingError: the result has values that are not finite, or the adapter does not fit.
        """
        adapter = self._adapter
        if adapter and (stand_in := self._stand_in(name)):
            weight = adapter.replacement(stand_in).float()
        assert weight is not None
        return require_finite(
            name,
            adapter.apply(name, weight) if adapter else weight,
            "after the merge",
            "training diverged; export an earlier checkpoint",
        )


def require_finite(name: str, tensor: torch.Tensor, where: str, hint: str) -> torch.Tensor:
    """The tensor itself, which has no NaN and nothing infinite.

    Args:
        name: the tensor, for the message.
        tensor: of any float dtype.
        where: in which tensor of that name, for the message.
        hint: the way out.

    Raises:
        InputMissingError: it has.
    """
    if not is_finite(tensor):
        bad = int((~torch.isfinite(tensor)).sum())
        raise InputMissingError(
            f"{name} has {bad:,} of {tensor.numel():,} values that are NaN or infinite {where}", hint
        )
    return tensor
