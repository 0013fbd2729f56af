"""The separation module: bottom-up and top-down paths for audio and video, run again and again with shared weights.

Source: JusperLee/IIANet. Axes: `(batch, channels, columns)`. A path has `depth` scales, each with half the columns of
the one before it; the first has the columns of its input.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from iianet.separator.attention import Fusion, SelectAttention
from iianet.separator.layers import ChannelScale, ConvNorm, resize

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
        pooled = [nn.functional.adaptive_avg_pool1d(scale, x.shape[-1]) for scale in scales]
        return scales, torch.stack(pooled).sum(0)


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
        self, scales: Sequence[Tensor], top: Tensor, residual: Tensor, gates: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Descend.

        Args:
            scales: Fine to coarse, each `(batch, channels, columns of the scale)`.
            top: `(batch, channels, top_columns)`.
            residual: The path's input, `(batch, in_channels, columns)`.
            gates: For each scale the share, 0 to 1, by which its features grow, `(batch, channels, any)`.

        Returns:
            The path's output, `(batch, in_channels, columns)`, and the selected scales, shaped as `scales`.
        """
        selected = [
            select(scale, top, repeat_guide=self.resize_top) for select, scale in zip(self.select, scales, strict=True)
        ]
        if gates is not None:
            selected = [x * resize(1 + gate, x.shape[-1]) for x, gate in zip(selected, gates, strict=True)]
        merged = selected[-1]  # (batch, channels, columns of the coarsest)
        for merge, finer in zip(reversed(self.merge), reversed(selected[:-1]), strict=True):
            merged = merge(finer, merged)  # (batch, channels, columns of the finer scale)
        return self.narrow(merged) + residual, selected


class Separator(nn.Module):
    """Refine audio features under the guidance of video, `num_blocks` times with the same weights.

    Args:
        audio_channels: Channels of audio in and out.
        audio_width: Channels inside the audio path.
        video_channels: Channels of video in.
        video_width: Channels inside the video path.
        depth: Scales of either path.
        num_blocks: Iterations.
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
        self.audio_up = BottomUp(audio_channels, audio_width, depth, kernel_size=5, act=nn.PReLU())
        self.audio_down = TopDown(audio_channels, audio_width, depth, resize_top=True)
        self.video_up = BottomUp(video_channels, video_width, depth, kernel_size=3, act=nn.GELU())
        self.video_down = TopDown(video_channels, video_width, depth, resize_top=False)
        self.video_gates = nn.ModuleList(ConvNorm(video_width, audio_width, 3, bias=False) for _ in range(depth))
        self.fusion = Fusion(audio_width, video_width)
        self.audio_reentry = nn.Sequential(ChannelScale(audio_channels), nn.PReLU())
        self.video_reentry = nn.Sequential(ChannelScale(video_channels), nn.ReLU())

    def compile_blocks(self) -> None:
        """Compile an iteration of either kind, once for all of them; names in checkpoints stay as they are.

        Each shape has a graph of its own. One for all shapes would depend on which of them came first, and a resumed
        run would compute other last bits than one that never stopped.
        """
        self._hear = torch.compile(self._hear, dynamic=False)  # type: ignore[method-assign]
        self._hear_and_see = torch.compile(self._hear_and_see, dynamic=False)  # type: ignore[method-assign]

    def forward(self, audio: Tensor, video: Tensor) -> Tensor:
        """Separate.

        Args:
            audio: Mixture features, `(batch, audio_channels, audio_columns)`.
            video: Mouth features, `(batch, video_channels, frames)`.

        Returns:
            `(batch, audio_channels, audio_columns)`.
        """
        first_audio, first_video = audio, video
        for block in range(self.num_blocks):
            if block > 0:
                audio = self.audio_reentry(audio + first_audio)
            if block >= AUDIO_VISUAL_BLOCKS:
                audio = self._hear(audio)
                continue
            if block > 0:
                video = self.video_reentry(video + first_video)
            audio, video = self._hear_and_see(audio, video)
        return audio

    def _hear(self, audio: Tensor) -> Tensor:
        """One iteration of audio alone, shape kept."""
        scales, top = self.audio_up(audio)
        output: Tensor = self.audio_down(scales, self.fusion.refine_audio(top), audio)[0]
        return output

    def _hear_and_see(self, audio: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        """One iteration of both, shapes kept."""
        audio_scales, audio_top = self.audio_up(audio)
        video_scales, video_top = self.video_up(video)
        audio_top, video_top = self.fusion(audio_top, video_top)
        video, selected = self.video_down(video_scales, video_top, video)
        gates = [torch.sigmoid(gate(scale)) for gate, scale in zip(self.video_gates, selected, strict=True)]
        audio, _ = self.audio_down(audio_scales, audio_top, audio, gates)
        return audio, video
