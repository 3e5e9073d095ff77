"""TRL's metrics as running sums on the device, read once per logged step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from qdpo.engine.logps import PackScores
from qdpo.engine.losses import PairLogps, reward_metrics
from qdpo.training import parallel


@dataclass
class Metrics:
    """Weighted means of named values; adding costs no device synchronisation.

    Attributes:
        sums: per name, sum of values and sum of weights, both tensors.
    """

    sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def add(self, name: str, total: Tensor, weight: Tensor) -> None:
        """Add a sum of values and how many they are."""
        total, weight = total.detach().double(), weight.detach().double()
        if name in self.sums:
            total, weight = self.sums[name][0] + total, self.sums[name][1] + weight
        self.sums[name] = total, weight

    def add_pack(self, scores: PackScores, batch: PairLogps, beta: float) -> None:
        """Add what TRL logs of n pairs: rewards, log-probabilities, mean logits, entropy, token accuracy.

        `logps/accuracies` is ours: the share of pairs whose chosen completion is the more likely one, reference or
        not. Unlike the reward accuracy, which compares with the reference and has only ties before training, it says
        where the model starts.
        """
        n = len(batch)
        ones = torch.ones(n, device=scores.logps.device)
        for name, values in reward_metrics(batch, beta).items():
            self.add(name, values.sum(), ones.sum())
        self.add("logps/accuracies", (batch.chosen > batch.rejected).sum(), ones.sum())
        chosen, rejected = slice(0, n), slice(n, 2 * n)
        for side, part in (("chosen", chosen), ("rejected", rejected)):
            self.add(f"logits/{side}", scores.logits[part].sum(), scores.tokens[part].sum())
        self.add("entropy", scores.entropy.sum(), scores.tokens.sum())
        self.add("mean_token_accuracy", scores.top1[chosen].sum(), scores.tokens[chosen].sum())

    def read(self) -> dict[str, float]:
        """The means so far, over all processes, in one transfer, and start anew."""
        if not self.sums:
            return {}
        sums = parallel.summed(torch.stack([torch.stack(pair) for pair in self.sums.values()]))
        means = (sums[:, 0] / sums[:, 1]).tolist()
        names = list(self.sums)
        self.sums = {}
        return dict(zip(names, means, strict=True))
