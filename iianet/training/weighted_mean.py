"""A mean over examples of unequal batches and ranks."""

import torch
from torch import Tensor
from torchmetrics import Metric


class WeightedMean(Metric):
    """Mean of values by their weights, over all ranks.

    NaN and infinity are kept, since a run that diverges must be seen to, and the mean of nothing is NaN. (torchmetrics'
    MeanMetric 1.9 leaves NaN out, or, when asked to keep it, leaves the weights out.)

    Attributes:
        sums: Sum of weight x value, and of weight, `(2,)`, float64.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor, weights: Tensor) -> None:
        """Add values `(batch,)` by their weights `(batch,)`; what has weight 0 is not looked at."""
        values = torch.where(weights > 0, values, 0)
        self.sums += torch.stack([(values * weights).sum(), weights.sum()]).to(self.sums.dtype)

    def compute(self) -> Tensor:
        """The mean, float32."""
        return (self.sums[0] / self.sums[1]).float()
