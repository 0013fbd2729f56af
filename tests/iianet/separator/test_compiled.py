"""Iterations and losses compile as one graph each: a break would be launched piece by piece."""

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from iianet.losses import PAIRWISE_LOSSES, permutation_invariant
from iianet.separator.blocks import Separator


@pytest.mark.parametrize("keeps_activations", [pytest.param(True, marks=pytest.mark.slow), False])
def test_iterations_have_no_break_and_the_same_results(
    monkeypatch: pytest.MonkeyPatch, keeps_activations: bool
) -> None:
    torch.manual_seed(0)
    separator = Separator(8, 16, 6, 4, depth=3, num_blocks=5).eval()  # compiled dropout draws other numbers
    separator.keeps_activations = keeps_activations
    audio, video = torch.randn(2, 8, 101, requires_grad=True), torch.randn(2, 6, 13, requires_grad=True)
    found = []
    torch._dynamo.reset()
    counters["stats"].clear()
    for compiled in (False, True):
        if compiled:
            monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
            separator.compile_blocks()
        out = separator(audio, video)
        found.append([out, *torch.autograd.grad(out.square().sum(), [audio, video, *separator.parameters()])])
    assert counters["stats"]["unique_graphs"] == 2, "of either kind of iteration, and none of its own for backward"
    for plain, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)


def test_each_forward_frees_the_graphs_of_the_step_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else memory that backward has done with is kept, and iterations are recorded again."""
    separator, marks = Separator(8, 16, 6, 4, depth=2, num_blocks=1), []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=lambda graph, _, **__: graph))
    for records_graphs, expected in ((False, 0), (True, 2)):
        separator.compile_blocks(records_graphs)
        for _ in range(2):
            separator(torch.randn(1, 8, 20), torch.randn(1, 6, 5))
        assert len(marks) == expected


@pytest.mark.parametrize("pairwise", PAIRWISE_LOSSES.values())
def test_losses_have_no_break(pairwise: object) -> None:
    assert callable(pairwise)
    estimate, target = torch.randn(2, 2, 800), torch.randn(2, 2, 800)
    fused = torch.compile(lambda *both: permutation_invariant(pairwise(*both)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(fused(estimate, target), permutation_invariant(pairwise(estimate, target)))
