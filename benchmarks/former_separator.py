"""The separator's arithmetic as the reference's formulas have it: to be compared with, and timed.

Everything is computed on all columns, module by module: the top's columns are repeated before they are convolved and
normalised, a depthwise convolution of one column is a convolution, and each block uses the weights themselves.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from iianet.separator.attention import SelectAttention
from iianet.separator.blocks import AUDIO_VISUAL_BLOCKS, Separator, TopDown
from iianet.separator.layers import ChannelScale, drop_paths
from iianet.separator.operators import resize


@contextmanager
def former_separator() -> Iterator[None]:
    """Inside, every separator computes by these formulas."""
    replaced: list[tuple[Any, Callable[..., Any]]] = [(Separator, _separate), (ChannelScale, nn.Conv1d.forward)]
    kept = [kind.forward for kind, _ in replaced]
    for kind, forward in replaced:
        kind.forward = forward
    try:
        yield
    finally:
        for (kind, _), forward in zip(replaced, kept, strict=True):
            kind.forward = forward


def _separate(self: Separator, audio: Tensor, video: Tensor) -> Tensor:
    seeing = min(AUDIO_VISUAL_BLOCKS, self.num_blocks)
    kept: Sequence[Tensor | None] = [None] * (self.num_blocks + seeing)
    if self.training:
        kept = drop_paths(2 * len(kept), len(audio), audio).view(-1, 2, len(audio), 1, 1).unbind(0)
    first_audio, first_video = audio, video
    for block in range(self.num_blocks):
        if block > 0:
            audio = self.audio_reentry(audio + first_audio)
        scales, top = self.audio_up(audio)
        if block >= seeing:
            top = self.fusion.refine_audio(top, kept[block])
            audio = _descend(self.audio_down, scales, top, audio)[0]
            continue
        if block > 0:
            video = self.video_reentry(video + first_video)
        video_scales, video_top = self.video_up(video)
        top, video_top = self.fusion(top, video_top, kept[block], kept[self.num_blocks + block])
        video, selected = _descend(self.video_down, video_scales, video_top, video)
        gates = [torch.sigmoid(gate(scale)) for gate, scale in zip(self.video_gates, selected, strict=True)]
        audio = _descend(self.audio_down, scales, top, audio, gates)[0]
    return audio


def _descend(
    down: TopDown, scales: list[Tensor], top: Tensor, residual: Tensor, gates: list[Tensor] | None = None
) -> tuple[Tensor, list[Tensor]]:
    selected = [_select(select, scale, top, down.resize_top) for select, scale in zip(down.select, scales, strict=True)]
    if gates is not None:
        selected = [x + x * resize(gate, x.shape[-1]) for x, gate in zip(selected, gates, strict=True)]
    merged = selected[-1]
    for merge, finer in zip(reversed(down.merge), reversed(selected[:-1]), strict=True):
        merged = _select(merge, finer, merged, False)
    return down.narrow(merged) + residual, selected


def _select(select: SelectAttention | Any, local: Tensor, guide: Tensor, repeat_guide: bool) -> Tensor:
    columns = local.shape[-1]
    guide = resize(guide, columns) if repeat_guide else guide
    gate = resize(torch.sigmoid(select.gate(guide)), columns)
    selected: Tensor = select.local(local) * gate + resize(select.shift(guide), columns)
    return selected
