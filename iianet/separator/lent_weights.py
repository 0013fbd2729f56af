"""Weights that one step uses many times, whose gradients are added in few operators."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class LentWeights:
    """The weights of modules that run many times in one step.

    Each run computes with aliases of its own. Backward adds the gradients of all weights run by run, in one operator
    for each run; autograd alone would take one for each weight and run. At any time it keeps the gradients of two runs.

    Args:
        modules: Their parameters are lent. Outside of `lent` they are as they were.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        owners = [owner for module in modules for owner in module.modules()]
        self._slots: list[tuple[dict[str, Any], str]] = [
            (owner._parameters, name)
            for owner in owners
            for name, parameter in owner._parameters.items()
            if parameter is not None
        ]

    @contextmanager
    def lent(self, runs: int, others: Sequence[Tensor] = ()) -> Iterator[Iterator[Sequence[Tensor]]]:
        """Inside, each item of the yielded iterator starts one of the runs, and has the run's aliases of `others`."""
        held = self._held
        try:
            yield self._runs([*held, *others], runs)
        finally:
            self._put(held)

    def bound(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with the present aliases whenever it is called, as within backward."""
        lent = self._held

        def again(*inputs: Any) -> Any:
            before = self._held
            self._put(lent)
            try:
                return run(*inputs)
            finally:
                self._put(before)

        return again

    @property
    def _held(self) -> list[Tensor]:
        return [slots[name] for slots, name in self._slots]

    def _runs(self, weights: Sequence[Tensor], runs: int) -> Iterator[Sequence[Tensor]]:
        for run in range(runs):
            lent = weights
            if run < runs - 1:
                both = _Lend.apply(*weights)  # type: ignore[no-untyped-call]
                lent, weights = both[: len(weights)], both[len(weights) :]
            self._put(lent[: len(self._slots)])
            yield lent[len(self._slots) :]

    def _put(self, weights: Sequence[Tensor]) -> None:
        for (slots, name), weight in zip(self._slots, weights, strict=True):
            slots[name] = weight


class _Lend(Function):
    """Two aliases of each weight: for a run, and for the runs after it, whose gradients come here added already."""

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(weight.view_as(weight) for weight in (*weights, *weights))

    @staticmethod
    @once_differentiable
    def backward(_: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        own, later = grads[: len(grads) // 2], grads[len(grads) // 2 :]
        both = [(one, more) for one, more in zip(own, later, strict=True) if one is not None and more is not None]
        added = iter(torch._foreach_add([one for one, _ in both], [more for _, more in both]) if both else ())
        return tuple(
            next(added) if one is not None and more is not None else more if one is None else one
            for one, more in zip(own, later, strict=True)
        )
