"""The separation module: bottom-up and top-down paths for audio and video, run again and again with shared weights.

Source: JusperLee/IIANet. Axes: `(batch, channels, columns)`. A path has `depth` scales, each with half the columns of
the one before it; the first has the columns of its input.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from iianet.separator.attention import Fusion, SelectAttention
from iianet.separator.layers import EPS, ChannelScale, ConvNorm, drop_paths
from iianet.separator.lent_weights import LentWeights
from iianet.separator.operators import GuideWeights, guide_of_next, guides_of_scales, resize, shares_of_means

AUDIO_VISUAL_BLOCKS = 4
"""Iterations that see the video, from the first on; the rest refine audio alone."""


class BottomUp(nn.Module):
    """Widen the features and halve their columns scale by scale.

    Args:
        in_channels: Channels in.
        channels: Channels of every scale.
        depth: Scales.
        kernel_size: Columns seen by each depthwise convolution.
        act: Activation after widening.
    """

    def __init__(self, in_channels: int, channels: int, depth: int, kernel_size: int, act: nn.Module) -> None:
        super().__init__()
        self.widen = nn.Sequential(ConvNorm(in_channels, channels, 1), act)
        self.scales = nn.ModuleList(
            ConvNorm(channels, channels, kernel_size, stride=1 if scale == 0 else 2, groups=channels)
            for scale in range(depth)
        )

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Climb.

        Args:
            x: `(batch, in_channels, columns)`.

        Returns:
            The scales, fine to coarse, each `(batch, channels, columns of the scale)`, and the top: all of them
            averaged down to the coarsest and summed.
        """
        x = self.widen(x)  # (batch, channels, columns)
        scales = []
        for shrink in self.scales:
            x = shrink(x)  # (batch, channels, columns of the scale)
            scales.append(x)
        pooled = [nn.functional.adaptive_avg_pool1d(scale, x.shape[-1]) for scale in scales[:-1]]
        return scales, torch.stack([*pooled, x]).sum(0)


class TopDown(nn.Module):
    """Let the top select at every scale, then merge the scales from coarse to fine and add the path's input.

    Args:
        in_channels: Channels of the path's input, and out.
        channels: Channels of every scale.
        depth: Scales, at least two.
        resize_top: Repeat the top's columns before the attention's norm sees them (audio) instead of after (video). The
            two differ where the columns do not divide evenly, so published weights need each as it is.
    """

    def __init__(self, in_channels: int, channels: int, depth: int, resize_top: bool) -> None:
        super().__init__()
        self.resize_top = resize_top
        self.select = nn.ModuleList(SelectAttention(channels, 1) for _ in range(depth))
        self.merge = nn.ModuleList(SelectAttention(channels, 5) for _ in range(depth - 1))
        self.narrow = nn.Conv1d(channels, in_channels, 1)

    def forward(
        self,
        scales: Sequence[Tensor],
        top: Tensor,
        weights: Sequence[Tensor],
        share: Tensor,
        gates: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """Select at every scale.

        Args:
            scales: Fine to coarse, each `(batch, channels, columns of the scale)`.
            top: `(batch, channels, top_columns)`.
            weights: Of the guides, as `guide_weights` gives them.
            share: As `share` gives it.
            gates: For each scale the share, 0 to 1, by which its features grow, `(batch, channels, any)`.

        Returns:
            The selected scales, shaped as `scales`.
        """
        guides = guides_of_scales(top, _triples(weights)[0], share.to(top.dtype), EPS).view(len(scales), 2, *top.shape)
        selected = [select(scale, guide) for select, scale, guide in zip(self.select, scales, guides, strict=True)]
        if gates is None:
            return selected
        return [x * resize(1 + gate, x.shape[-1]) for x, gate in zip(selected, gates, strict=True)]

    def share(self, x: Tensor) -> Tensor:
        """Share of each number of the top in the mean of each guide's norm, for a path's input.

        Args:
            x: `(batch, in_channels, columns)`.

        Returns:
            Of gate and shift by turns, `(2 * depth, 1, 1, top_columns)`.
        """
        columns = [x.shape[-1]]
        for _ in self.merge:
            columns.append((columns[-1] + 1) // 2)
        seen = columns if self.resize_top else columns[-1:] * len(columns)
        dtype = torch.promote_types(x.dtype, torch.float32)  # what autocast keeps statistics in
        return shares_of_means(self.narrow.in_channels, columns[-1], tuple(seen), x.device, dtype)

    def descend(self, selected: Sequence[Tensor], weights: Sequence[Tensor], residual: Tensor) -> Tensor:
        """Merge the selected scales from coarse to fine, and add the path's input.

        Args:
            selected: As `forward` returns them.
            weights: As for `forward`.
            residual: The path's input, `(batch, in_channels, columns)`.

        Returns:
            The path's output, `(batch, in_channels, columns)`.
        """
        merged = selected[-1]  # (batch, channels, columns of the coarsest)
        steps = zip(self.merge, selected[:-1], _triples(weights)[1:], strict=True)
        for merge, finer, own in reversed(list(steps)):
            merged = merge(finer, guide_of_next(merged, own, EPS))  # (batch, channels, columns of the finer scale)
        output: Tensor = self.narrow(merged) + residual
        return output

    def guide_weights(self, batch: int) -> list[Tensor]:
        """The weights of all guides, put together for `batch` items.

        Returns:
            Those of the guides of the scales, then of each merge, fine to coarse: kernels, norms' weights, and
            biases, as `guides_of_scales` and `guide_of_next` take them.
        """
        kernels, weights, biases = _guide_parts(self._merges)
        of_items = [_for_items(part, len(self.merge), batch) for part in (kernels.unsqueeze(2), weights, biases)]
        scale, weight, bias = _guide_parts(self._selects)
        merges = [part for triple in zip(*of_items, strict=True) for part in triple]
        return [scale.flatten(1), weight, bias, *merges]

    @property
    def _selects(self) -> list[SelectAttention]:
        return [module for module in self.select if isinstance(module, SelectAttention)]

    @property
    def _merges(self) -> list[SelectAttention]:
        return [module for module in self.merge if isinstance(module, SelectAttention)]

    def lent_modules(self) -> list[nn.Module]:
        """The modules whose weights are not in `guide_weights`."""
        return [*(select.local for select in (*self._selects, *self._merges)), self.narrow]


def _guide_parts(selects: Iterable[SelectAttention]) -> tuple[Tensor, Tensor, Tensor]:
    """Kernels, and weights and biases of the norms, of gate and shift by turns, `(2 * selects, channels, ...)`."""
    norms = [norm for select in selects for norm in (select.gate, select.shift)]
    kernels = torch.stack([norm.conv.weight.squeeze(1) for norm in norms])
    return kernels, torch.stack([norm.norm.weight for norm in norms]), torch.stack([norm.norm.bias for norm in norms])


def _for_items(part: Tensor, merges: int, batch: int) -> tuple[Tensor, ...]:
    """`(2 * merges, channels, ...)` -> for each merge the same for every item, `(2 * batch * channels, ...)`."""
    repeated = part.unsqueeze(1).expand(-1, batch, *part.shape[1:])
    return repeated.reshape(merges, -1, *part.shape[2:]).unbind(0)


def _triples(weights: Sequence[Tensor]) -> list[GuideWeights]:
    return [GuideWeights(*weights[first : first + 3]) for first in range(0, len(weights), 3)]


class Separator(nn.Module):
    """Refine audio features under the guidance of video, `num_blocks` times with the same weights.

    Args:
        audio_channels: Channels of audio in and out.
        audio_width: Channels inside the audio path.
        video_channels: Channels of video in.
        video_width: Channels inside the video path.
        depth: Scales of either path.
        num_blocks: Iterations.

    Attributes:
        keeps_activations: Whether forward keeps what backward needs of each iteration; else it is computed once more.
        records_graphs: Whether what is compiled is recorded in CUDA graphs, which cannot be without what forward keeps.
    """

    def __init__(
        self,
        audio_channels: int,
        audio_width: int,
        video_channels: int,
        video_width: int,
        depth: int,
        num_blocks: int,
    ) -> None:
        super().__init__()
        self.num_blocks = num_blocks
        self.keeps_activations = True
        self.records_graphs = False
        self.audio_up = BottomUp(audio_channels, audio_width, depth, kernel_size=5, act=nn.PReLU())
        self.audio_down = TopDown(audio_channels, audio_width, depth, resize_top=True)
        self.video_up = BottomUp(video_channels, video_width, depth, kernel_size=3, act=nn.GELU())
        self.video_down = TopDown(video_channels, video_width, depth, resize_top=False)
        self.video_gates = nn.ModuleList(ConvNorm(video_width, audio_width, 3, bias=False) for _ in range(depth))
        self.fusion = Fusion(audio_width, video_width)
        self.audio_reentry = nn.Sequential(ChannelScale(audio_channels), nn.PReLU())
        self.video_reentry = nn.Sequential(ChannelScale(video_channels), nn.ReLU())

        fusion = self.fusion
        self._audio_weights = LentWeights(
            [self.audio_up, *self.audio_down.lent_modules(), self.audio_reentry, fusion.refine_audio]
        )
        seen = [fusion.audio_gate, fusion.video_gate, fusion.video_to_audio, fusion.audio_to_video, fusion.refine_video]
        self._video_weights = LentWeights(
            [self.video_up, *self.video_down.lent_modules(), self.video_reentry, self.video_gates, *seen]
        )

    def compile_blocks(self, records_graphs: bool = False) -> None:
        """Compile an iteration of either kind, once for all of them; names in checkpoints stay as they are.

        Each shape has a graph of its own. One for all shapes would depend on which of them came first, and a resumed
        run would compute other last bits than one that never stopped.

        Args:
            records_graphs: Let a GPU record the kernels of each iteration of a step, forward and backward, in CUDA
                graphs, which draw dropout from torch's own generator at each replay.
        """
        self.records_graphs = records_graphs
        options = {"triton.cudagraphs": True} if records_graphs else None
        compiled = partial(torch.compile, dynamic=False, options=options)
        self._hear = compiled(self._hear)  # type: ignore[method-assign]
        self._hear_and_see = compiled(self._hear_and_see)  # type: ignore[method-assign]

    def forward(self, audio: Tensor, video: Tensor) -> Tensor:
        """Separate.

        Args:
            audio: Mixture features, `(batch, audio_channels, audio_columns)`.
            video: Mouth features, `(batch, video_channels, frames)`.

        Returns:
            `(batch, audio_channels, audio_columns)`.
        """
        if self.records_graphs:  # from here on, memory of the step before may be written again
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        seeing = min(AUDIO_VISUAL_BLOCKS, self.num_blocks)
        kept: Sequence[Tensor | None] = [None] * (self.num_blocks + seeing)
        if self.training:
            kept = drop_paths(2 * len(kept), len(audio), audio).view(-1, 2, len(audio), 1, 1).unbind(0)
        first_audio, first_video = audio, video
        share, video_share = self.audio_down.share(audio), self.video_down.share(video)
        with (
            self._audio_weights.lent(self.num_blocks, self.audio_down.guide_weights(len(audio))) as audio_runs,
            self._video_weights.lent(seeing, self.video_down.guide_weights(len(video))) as video_runs,
        ):
            for block, weights in enumerate(audio_runs):
                if block > 0:
                    audio = self.audio_reentry(audio + first_audio)
                if block >= seeing:
                    audio = self._run(self._hear, audio, weights, share, kept[block])
                    continue
                video_weights = next(video_runs)
                if block > 0:
                    video = self.video_reentry(video + first_video)
                own, other = kept[block], kept[self.num_blocks + block]
                both = audio, video, weights, video_weights, share, video_share, own, other
                audio, video = self._run(self._hear_and_see, *both)
        return audio

    def _run(self, block: Callable[..., Any], *inputs: Any) -> Any:
        """Run an iteration; where it keeps no activations, backward runs it again, with the same dropout."""
        if self.keeps_activations or not torch.is_grad_enabled():
            return block(*inputs)
        for lender in (self._audio_weights, self._video_weights):
            block = lender.bound(block)
        return checkpoint(block, *inputs, use_reentrant=False)

    def _hear(self, audio: Tensor, weights: Sequence[Tensor], share: Tensor, kept: Tensor | None) -> Tensor:
        """One iteration of audio alone, shape kept."""
        scales, top = self.audio_up(audio)
        selected = self.audio_down(scales, self.fusion.refine_audio(top, kept), weights, share)
        return self.audio_down.descend(selected, weights, audio)

    def _hear_and_see(
        self,
        audio: Tensor,
        video: Tensor,
        weights: Sequence[Tensor],
        video_weights: Sequence[Tensor],
        share: Tensor,
        video_share: Tensor,
        kept: Tensor | None,
        kept_video: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One iteration of both, shapes kept."""
        scales, top = self.audio_up(audio)
        video_scales, video_top = self.video_up(video)
        top, video_top = self.fusion(top, video_top, kept, kept_video)
        seen = self.video_down(video_scales, video_top, video_weights, video_share)
        gates = [torch.sigmoid(gate(scale)) for gate, scale in zip(self.video_gates, seen, strict=True)]
        heard = self.audio_down(scales, top, weights, share, gates)
        return self.audio_down.descend(heard, weights, audio), self.video_down.descend(seen, video_weights, video)
