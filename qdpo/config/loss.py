"""Which preference loss, its constants, and which of them go together. The formulas: `qdpo.training.losses`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())
"""Of every group of settings: an unknown key or a wrong type is an error."""

LossType = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
FDivergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

COUPLED: frozenset[str] = frozenset({"aot", "aot_unpaired"})
"""Losses in which a pair's gradient depends on the other pairs' log-probabilities."""

SMOOTHED: frozenset[str] = frozenset({"sigmoid", "robust", "exo_pair", "aot", "aot_unpaired"})
"""Losses that read `label_smoothing`."""

F_DIVERGENCE_LOSSES: frozenset[str] = frozenset(
    {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
)
"""Losses that accept another f-divergence than reverse KL."""

OTHER_NAMES = {
    "dpo": "DPO is `sigmoid`",
    "cdpo": "cDPO is `sigmoid` with label_smoothing above 0",
    "mpo": "MPO is a list: [sigmoid, bco_pair, sft] with loss_weights [0.8, 0.2, 1.0]",
    "rpo": "RPO is a list: [sigmoid, sft] with loss_weights",
    "slic": "SLiC's loss is `hinge`",
    "aot_pair": "TRL renamed it to `aot` (and the former `aot` to `aot_unpaired`)",
    "kto_pair": "TRL removed it; `bco_pair` and `apo_zero` also judge each completion by itself",
}
"""What people call losses that have another name here."""


class LossSettings(BaseModel):
    """The preference loss (TRL's names and defaults).

    Several losses are added with `loss_weights` (MPO, arXiv 2411.10442), which are not normalised.

    Raises:
        ValueError: a value outside its range, or a setting that the chosen losses would ignore or cannot take.
    """

    model_config = STRICT

    loss_type: Annotated[
        list[LossType],
        Field(min_length=1, description="one or several losses (sigmoid is DPO's own), summed with loss_weights"),
    ] = ["sigmoid"]
    loss_weights: Annotated[list[float] | None, Field(description="one weight per loss_type; null: 1 each")] = None
    beta: Annotated[float, Field(gt=0, description="strength of the pull towards the reference (1/nats)")] = 0.1
    label_smoothing: Annotated[
        float, Field(ge=0, lt=0.5, description="assumed share of flipped labels (sigmoid: cDPO; robust, exo_pair, aot)")
    ] = 0.0
    discopop_tau: Annotated[float, Field(gt=0, description="temperature of DiscoPOP's log-ratio modulation")] = 0.05
    f_divergence_type: Annotated[
        FDivergence, Field(description="regulariser between policy and reference; reverse_kl is DPO's")
    ] = "reverse_kl"
    f_alpha_divergence_coef: Annotated[float, Field(description="alpha of alpha_divergence; 1 is reverse KL")] = 0.5

    @property
    def couples_pairs(self) -> bool:
        """Whether a pair's loss depends on other pairs, so that a step's gradients need its whole batch."""
        return not COUPLED.isdisjoint(self.loss_type)

    @property
    def weights(self) -> list[float]:
        """The weight of each loss type, with the default of 1 each filled in."""
        return self.loss_weights if self.loss_weights is not None else [1.0] * len(self.loss_type)

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.loss_weights is None:
            return self
        if len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} values for the {len(self.loss_type)} losses of loss_type; "
                "give one per loss, or none at all for 1 each"
            )
        if min(self.loss_weights) < 0 or not any(self.loss_weights):
            raise ValueError(
                f"loss_weights must not be negative, and not all 0; got {self.loss_weights} "
                "(a negative weight would train away from its loss)"
            )
        return self

    @model_validator(mode="after")
    def _smoothing_has_a_meaning(self) -> Self:
        if "exo_pair" in self.loss_type and self.label_smoothing == 0.0:
            raise ValueError(
                "loss_type exo_pair takes the logarithm of label_smoothing, so 0 makes it infinite; "
                "set label_smoothing: 0.001 (the EXO paper's value)"
            )
        if self.label_smoothing > 0.0 and not SMOOTHED.intersection(self.loss_type):
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}, but {self.loss_type} would ignore it; "
                f"set it to 0, or use one of {sorted(SMOOTHED)}"
            )
        return self

    @model_validator(mode="after")
    def _divergence_has_a_meaning(self) -> Self:
        refused = [name for name in self.loss_type if name not in F_DIVERGENCE_LOSSES]
        if self.f_divergence_type != "reverse_kl" and refused:
            raise ValueError(
                f"f_divergence_type {self.f_divergence_type} has no meaning for {refused}: f-DPO's unknown constant "
                "beta * log Z(x) cancels only in a difference of chosen and rejected; set f_divergence_type: "
                f"reverse_kl, or use only losses among {sorted(F_DIVERGENCE_LOSSES)}"
            )
        return self
