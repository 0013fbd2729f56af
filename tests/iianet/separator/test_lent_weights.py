"""Lent weights give the gradients of the weights themselves, and come back whatever happens."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from iianet.separator.lent_weights import LentWeights

RUNS = 5


class _Adds(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.calls[str(func).removeprefix("aten.").partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3, bias=False)).double()


def run(model: nn.Module, extra: Tensor, lend: bool) -> Tensor:
    x = torch.ones(2, 3, dtype=torch.float64)
    if lend:
        with LentWeights([model]).lent(RUNS, [extra]) as runs:
            for number, (alias,) in enumerate(runs):
                x = model(x) * alias if number else model(x)  # not every run uses all of them
    else:
        for number in range(RUNS):
            x = model(x) * extra if number else model(x)
    return x


def test_gradients_are_those_of_the_weights_themselves() -> None:
    results = []
    for lend in (False, True):
        model, extra = network(), torch.full((3,), 1.5, dtype=torch.float64, requires_grad=True)
        run(model, extra, lend).square().sum().backward()
        results.append([*(parameter.grad for parameter in model.parameters()), extra.grad])
    for own, lent in zip(*results, strict=True):
        torch.testing.assert_close(own, lent, rtol=1e-12, atol=1e-14)


def test_gradients_of_all_weights_are_added_by_one_operator_for_each_run() -> None:
    model, extra = network(), torch.ones(3, dtype=torch.float64, requires_grad=True)
    loss = run(model, extra, lend=True).sum()
    with _Adds() as counted:
        loss.backward()
    assert counted.calls["_foreach_add"] == RUNS - 1
    assert counted.calls["add"] == 0


@pytest.mark.parametrize("fails", [False, True])
def test_the_weights_are_in_place_afterwards(fails: bool) -> None:
    model = network()
    before = list(model.parameters())
    with pytest.raises(ZeroDivisionError) if fails else torch.no_grad(), LentWeights([model]).lent(RUNS) as runs:
        for _ in runs:
            if fails:
                raise ZeroDivisionError
    assert all(one is other for one, other in zip(before, model.parameters(), strict=True))
