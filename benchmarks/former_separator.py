"""The separator's arithmetic as it was written at first, by the reference's formulas: to be compared with, and timed.

Everything is computed on all columns: the top's columns are repeated before they are convolved and normalised, and a
depthwise convolution of one column is a convolution.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from iianet.separator.attention import SelectAttention
from iianet.separator.blocks import TopDown
from iianet.separator.layers import ChannelScale, resize


@contextmanager
def former_separator() -> Iterator[None]:
    """Inside, every separator computes as it did."""
    replaced: list[tuple[Any, Callable[..., Any]]] = [
        (SelectAttention, _select),
        (ChannelScale, nn.Conv1d.forward),
        (TopDown, _descend),
    ]
    kept = [kind.forward for kind, _ in replaced]
    for kind, forward in replaced:
        kind.forward = forward
    try:
        yield
    finally:
        for (kind, _), forward in zip(replaced, kept, strict=True):
            kind.forward = forward


def _select(self: SelectAttention, local: Tensor, guide: Tensor, repeat_guide: bool = False) -> Tensor:
    columns = local.shape[-1]
    guide = resize(guide, columns) if repeat_guide else guide
    gate = resize(torch.sigmoid(self.gate(guide)), columns)
    selected: Tensor = self.local(local) * gate + resize(self.shift(guide), columns)
    return selected


def _descend(
    self: TopDown, scales: list[Tensor], top: Tensor, residual: Tensor, gates: list[Tensor] | None = None
) -> tuple[Tensor, list[Tensor]]:
    selected = [select(scale, top, self.resize_top) for select, scale in zip(self.select, scales, strict=True)]
    if gates is not None:
        selected = [x + x * resize(gate, x.shape[-1]) for x, gate in zip(selected, gates, strict=True)]
    merged = selected[-1]
    for merge, finer in zip(reversed(self.merge), reversed(selected[:-1]), strict=True):
        merged = merge(finer, merged)
    return self.narrow(merged) + residual, selected
