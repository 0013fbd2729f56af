"""How many operators a GPU would run for a step, counted where none is needed."""

from collections import Counter

import pytest
import torch
from helpers.reference_golden import PUBLISHED_CONFIG
from torch.utils._python_dispatch import TorchDispatchMode

from iianet.separator import layers
from iianet.separator.model import IIANet

PUBLISHED_STEP = 8959
"""Operators of a step of the published network, batch 1 of 2 s, counted in the same way."""
NO_LAUNCH = {
    *("view", "_unsafe_view", "detach", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze"),
    *("squeeze", "split", "split_with_sizes", "unbind", "alias", "as_strided", "_reshape_alias", "lift_fresh"),
    *("empty", "empty_like", "new_empty", "new_empty_strided"),
}
"""Operators that only look at memory, or ask for it."""


class Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = str(func).removeprefix("aten.").partition(".")[0]
        if name not in NO_LAUNCH:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


def test_a_step_has_at_most_six_tenths_of_the_published_networks_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_multiplies", lambda _: False)  # the form of every device but a CPU
    model = IIANet(**PUBLISHED_CONFIG).train()
    with Launches() as forward:
        loss = model(torch.randn(1, 8000), torch.randn(1, 512, 13)).square().mean()
    with Launches() as backward:
        loss.backward()
    assert forward.calls.total() + backward.calls.total() <= 0.6 * PUBLISHED_STEP, (
        forward.calls.most_common(12),
        backward.calls.most_common(12),
    )
