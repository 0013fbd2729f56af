"""Differentiable operators of the separator that take few launches where their formulas would take many.

A small batch on a GPU waits for launches more than for arithmetic, so their number decides how long a step takes. Each
function here equals the formula beside it, which torch.compile gets, since it fuses by itself; tests hold that.
Axes: `(batch, channels, columns)`; a guide is a gate, 0 to 1, and a shift.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class GuideWeights(NamedTuple):
    """Weights of some guides: of their depthwise convolutions, and of the norms after them."""

    kernel: Tensor
    weight: Tensor
    bias: Tensor


KEPT_COLUMNS = 2048
"""Gates of more columns are resized again in backward, which saves memory; shorter ones are kept: a launch less."""


def resize(x: Tensor, columns: int) -> Tensor:
    """Repeat or skip columns, nearest neighbour: `(batch, channels, any)` -> `(batch, channels, columns)`."""
    if x.shape[-1] == columns:
        return x
    if x.shape[-1] == 1:  # torch 2.13 cannot compile the other way's backward for a CPU then
        return x.expand(*x.shape[:-1], columns)
    return nn.functional.interpolate(x, size=columns, mode="nearest")


def modulate(features: Tensor, guide: Tensor) -> Tensor:
    """Scale fine features by a coarse gate, and add a coarse shift.

    Args:
        features: `(batch, channels, columns)`.
        guide: Gate and shift, `(2, batch, channels, any)`.

    Returns:
        `(batch, channels, columns)`.
    """
    if torch.compiler.is_compiling():
        return modulate_formula(features, guide)
    modulated: Tensor = _Modulate.apply(features, guide)  # type: ignore[no-untyped-call]
    return modulated


def modulate_formula(features: Tensor, guide: Tensor) -> Tensor:
    """`modulate`, written out."""
    gate, shift = (resize(part, features.shape[-1]) for part in guide)
    return features * gate + shift


class _Modulate(Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, guide: Tensor) -> Tensor:
        columns = features.shape[-1]
        gate, shift = resize(guide.flatten(0, 1), columns).view(*guide.shape[:-1], columns)
        ctx.few = guide.shape[-1]
        ctx.save_for_backward(features, guide[0] if columns > KEPT_COLUMNS else gate)
        return torch.addcmul(shift, features, gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        features, gate = ctx.saved_tensors
        guide = grad.new_empty(2, *grad.shape[:2], ctx.few)
        _resize_back(grad * features, guide[0])
        _resize_back(grad, guide[1])
        return grad * resize(gate, grad.shape[-1]), guide


def _resize_back(grad: Tensor, out: Tensor) -> None:
    """Sum what `resize` repeated into `out`."""
    if grad.shape == out.shape:
        out.copy_(grad)
    else:
        columns = [grad.shape[-1]]
        torch.ops.aten.upsample_nearest1d_backward(grad.contiguous(), columns, list(out.shape), grad_input=out)


def guides_of_scales(x: Tensor, weights: GuideWeights, share: Tensor, eps: float) -> Tensor:
    """Guides of several scales out of one input: its channels scaled, normalised as if columns had been repeated first.

    Args:
        x: `(batch, channels, few)`.
        weights: Of gate and shift by turns, each `(2 * scales, channels)`; the kernels are one column wide.
        share: Share of each number of `x` in the mean, for each norm, `(2 * scales, 1, 1, few)`.
        eps: Added to the variance.

    Returns:
        `(2 * scales, batch, channels, few)`.
    """
    if torch.compiler.is_compiling():
        return guides_of_scales_formula(x, weights, share, eps)
    guides: Tensor = _GuidesOfScales.apply(x, *weights, share, eps)  # type: ignore[no-untyped-call]
    return guides


def guides_of_scales_formula(x: Tensor, weights: GuideWeights, share: Tensor, eps: float) -> Tensor:
    """`guides_of_scales`, written out."""
    kernel, weight, bias = (part[:, None, :, None] for part in weights)
    scaled = kernel * x  # (2 * scales, batch, channels, few)
    centred = scaled - (scaled * share).sum((2, 3), keepdim=True)
    variance = (centred.square() * share).sum((2, 3), keepdim=True)
    guides = centred * torch.rsqrt(variance + eps) * weight + bias
    return torch.stack((torch.sigmoid(guides[::2]), guides[1::2]), 1).flatten(0, 1)


@lru_cache(maxsize=64)
def shares_of_means(
    channels: int, few: int, columns: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """`share` of `guides_of_scales`, for a gate and a shift at each scale.

    Args:
        channels: Of the input.
        few: Columns of the input.
        columns: For each scale, to how many the input is repeated before its norms.
        device: Of the result.
        dtype: Of the result.

    Returns:
        `(2 * scales, 1, 1, few)`; made once for the same arguments.
    """
    with torch.inference_mode(False):  # it is kept for steps that train, too
        place = torch.arange(few, dtype=torch.float32, device="cpu").view(1, 1, -1)
        repeats = [_counted(resize(place, count).flatten().long(), few) for count in columns]
        pairs = [(row, count) for row, count in zip(repeats, columns, strict=True) for _ in range(2)]
        rows = [row.double() / (channels * count) for row, count in pairs]
        return torch.stack(rows)[:, None, None].to(device, dtype)


def _counted(numbers: Tensor, few: int) -> Tensor:
    """How often each number below `few` comes, `(few,)`; as bincount, whose shape is known before its result is."""
    return torch.zeros(few, device="cpu").index_add(0, numbers, torch.ones(len(numbers), device="cpu"))


class _GuidesOfScales(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, weight: Tensor, bias: Tensor, share: Tensor, eps: float) -> Tensor:
        centred = scale[:, None, :, None] * x  # (2 * scales, batch, channels, few)
        centred -= (centred * share).sum((2, 3), keepdim=True)
        deviation = torch.rsqrt((centred.square() * share).sum((2, 3), keepdim=True) + eps)  # of each item: its inverse
        normal = centred.mul_(deviation)
        guides = torch.addcmul(bias[:, None, :, None], normal, weight[:, None, :, None])
        guides[::2].sigmoid_()
        ctx.save_for_backward(x, scale, weight, share, normal, deviation, guides)
        return guides

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, weight, share, normal, deviation, guides = ctx.saved_tensors
        gates = torch.ops.aten.sigmoid_backward(grad[::2], guides[::2])
        grad = torch.stack((gates, grad[1::2]), 1).flatten(0, 1)  # by the norm's output, as `guides`
        by_bias = grad.sum(3)  # (2 * scales, batch, channels)
        by_weight = (grad * normal).sum(3)
        by_mean = (by_bias @ weight.unsqueeze(2)).unsqueeze(3)  # (2 * scales, batch, 1, 1)
        by_variance = (by_weight @ weight.unsqueeze(2)).unsqueeze(3)
        by_statistics = torch.addcmul(by_mean, normal, by_variance) * share
        by_scaled = torch.addcmul(by_statistics, grad, weight[:, None, :, None], value=-1) * -deviation
        by_x = (by_scaled * scale[:, None, :, None]).sum(0)
        by_scale = (by_scaled * x).sum((1, 3))
        return by_x, by_scale, by_weight.sum(1), by_bias.sum(1), None, None


def guide_of_next(x: Tensor, weights: GuideWeights, eps: float) -> Tensor:
    """Guide of the next finer scale: two depthwise convolutions of one input, each with its global layer norm.

    Args:
        x: `(batch, channels, columns)`.
        weights: Of the gate and then of the shift, for each item anew: `(2 * batch * channels, 1, kernel_size)` and
            `(2 * batch * channels,)`.
        eps: Added to the variance.

    Returns:
        `(2, batch, channels, columns)`.
    """
    twice = x.expand(2, *x.shape).reshape(1, -1, x.shape[-1])  # (1, 2 * batch * channels, columns)
    kernel, weight, bias = weights
    features = nn.functional.conv1d(twice, kernel, padding=kernel.shape[-1] // 2, groups=len(kernel))
    normal = nn.functional.group_norm(features, 2 * len(x), weight, bias, eps)
    apply = _open_gates if torch.compiler.is_compiling() else _OpenGates.apply
    guide: Tensor = apply(normal)
    return guide.view(2, *x.shape)


def _open_gates(guide: Tensor) -> Tensor:
    gate, shift = guide.chunk(2, 1)
    return torch.cat((torch.sigmoid(gate), shift), 1)


class _OpenGates(Function):
    """The same in place."""

    @staticmethod
    def forward(ctx: Any, guide: Tensor) -> Tensor:
        ctx.mark_dirty(guide)
        guide.chunk(2, 1)[0].sigmoid_()
        ctx.save_for_backward(guide)
        return guide

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (guide,) = ctx.saved_tensors
        (opened, _), (gate, shift) = guide.chunk(2, 1), grad.chunk(2, 1)
        return torch.cat((torch.ops.aten.sigmoid_backward(gate, opened), shift), 1)
