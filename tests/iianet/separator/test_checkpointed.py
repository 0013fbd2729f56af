"""A separator that keeps no activations: less memory, and every bit as before."""

import pytest
import torch
from helpers.made_memory import MadeMemory
from torch import Tensor

from iianet.separator.blocks import Separator


def step(keeps_activations: bool, bf16: bool) -> tuple[int, Tensor, list[Tensor]]:
    """Bytes that forward left for backward, output and gradients, in training mode."""
    torch.manual_seed(0)
    separator = Separator(8, 16, 6, 4, depth=3, num_blocks=6)
    separator.keeps_activations = keeps_activations
    audio, video = torch.randn(2, 8, 101, requires_grad=True), torch.randn(2, 6, 13, requires_grad=True)
    with MadeMemory() as made, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = separator(audio, video)
    kept = made.bytes_alive()
    out.square().sum().backward()
    return kept, out.detach(), [each.grad for each in (audio, video, *separator.parameters())]  # type: ignore[misc]


@pytest.mark.parametrize("bf16", [False, True])
def test_it_keeps_at_most_half_and_computes_the_same_bits(bf16: bool) -> None:
    kept, out, grads = step(True, bf16)
    fewer, again, grads_again = step(False, bf16)
    assert fewer <= 0.5 * kept
    assert torch.equal(out, again)
    assert all(torch.equal(one, other) for one, other in zip(grads, grads_again, strict=True))
