"""IIANet's attention: within one modality (select attention) and between audio and video (fusion).

Source: JusperLee/IIANet; the paper's IntraA and InterA blocks. Axes: `(batch, channels, columns)`.
"""

import torch
from torch import Tensor, nn

from iianet.separator.layers import ConvNorm, DropPath, FeedForward, resize


class SelectAttention(nn.Module):
    """Let coarse features select among fine ones: a gate from the guide scales the local features, a bias is added.

    All three convolutions are depthwise.

    Args:
        channels: Channels of both inputs and of the output.
        kernel_size: Columns seen by each convolution.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.local = ConvNorm(channels, channels, kernel_size, groups=channels, bias=False)
        self.gate = ConvNorm(channels, channels, kernel_size, groups=channels, bias=False)
        self.shift = ConvNorm(channels, channels, kernel_size, groups=channels, bias=False)

    def forward(self, local: Tensor, guide: Tensor, repeat_guide: bool = False) -> Tensor:
        """Select.

        Args:
            local: Fine features, `(batch, channels, columns)`.
            guide: Coarse features, `(batch, channels, guide_columns)`.
            repeat_guide: Let the norms see the guide with its columns repeated; for kernels of one column.

        Returns:
            `(batch, channels, columns)`.
        """
        columns = local.shape[-1]
        gate, shift = (
            norm.repeated(guide, columns) if repeat_guide else norm(guide) for norm in (self.gate, self.shift)
        )
        gate = resize(torch.sigmoid(gate), columns)  # (batch, channels, columns)
        selected: Tensor = self.local(local) * gate + resize(shift, columns)
        return selected


class ResidualAttention(nn.Module):
    """A 3-column convolution and then a feed-forward, each added to its input and subject to drop path.

    Args:
        channels: Channels in and out.
        feed_forward: The second branch; keeps the shape.
    """

    def __init__(self, channels: int, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attend = ConvNorm(channels, channels, 3, bias=False)
        self.feed_forward = feed_forward
        self.drop_path = DropPath()

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, channels, columns)` -> the same shape."""
        x = x + self.drop_path(self.attend(x))
        refined: Tensor = x + self.drop_path(self.feed_forward(x))
        return refined


class Fusion(nn.Module):
    """Exchange audio and video at the top of their paths (InterA-T), then refine each by itself.

    Each modality gates what it receives from the other: audio adds `video * sigmoid(gate of audio)` and the reverse.

    Args:
        audio_channels: Channels of the audio path.
        video_channels: Channels of the video path.
    """

    def __init__(self, audio_channels: int, video_channels: int) -> None:
        super().__init__()
        self.audio_gate = ConvNorm(audio_channels, video_channels, 3, bias=False)
        self.video_gate = ConvNorm(video_channels, audio_channels, 5, bias=False)
        self.video_to_audio = ConvNorm(video_channels, audio_channels, 1)
        self.audio_to_video = ConvNorm(audio_channels, video_channels, 1)
        self.refine_audio = ResidualAttention(audio_channels, FeedForward(audio_channels))
        self.refine_video = ResidualAttention(video_channels, ConvNorm(video_channels, video_channels, 3, bias=False))

    def forward(self, audio: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse.

        Args:
            audio: Top of the audio path, `(batch, audio_channels, audio_columns)`.
            video: Top of the video path, `(batch, video_channels, video_columns)`.

        Returns:
            Both, each in its own shape.
        """
        heard = resize(audio, video.shape[-1])  # (batch, audio_channels, video_columns)
        seen = resize(video, audio.shape[-1])  # (batch, video_channels, audio_columns)
        audio = audio + self.video_to_audio(seen * torch.sigmoid(self.audio_gate(audio)))
        video = video + self.audio_to_video(heard * torch.sigmoid(self.video_gate(video)))
        return self.refine_audio(audio), self.refine_video(video)
