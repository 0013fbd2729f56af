"""IIANet's attention: within one modality (select attention) and between audio and video (fusion).

Source: JusperLee/IIANet; the paper's IntraA and InterA blocks. Axes: `(batch, channels, columns)`.
"""

import torch
from torch import Tensor, nn

from iianet.separator.layers import ConvNorm, FeedForward
from iianet.separator.operators import modulate, resize


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

    def forward(self, local: Tensor, guide: Tensor) -> Tensor:
        """Select.

        Args:
            local: Fine features, `(batch, channels, columns)`.
            guide: What `gate` and `shift` make of coarse features, the gate's sigmoid first,
                `(2, batch, channels, any)`; `TopDown` computes the guides of all scales together.

        Returns:
            `(batch, channels, columns)`.
        """
        features: Tensor = self.local(local)
        return modulate(features, guide)


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

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Refine.

        Args:
            x: `(batch, channels, columns)`.
            kept: Factor of each branch and item, of `drop_paths`, `(2, batch, 1, 1)`; None: all are kept.

        Returns:
            The same shape.
        """
        if kept is None:
            x = x + self.attend(x)
            refined: Tensor = x + self.feed_forward(x)
            return refined
        x = torch.addcmul(x, self.attend(x), kept[0])
        return torch.addcmul(x, self.feed_forward(x), kept[1])


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

    def forward(
        self, audio: Tensor, video: Tensor, kept_audio: Tensor | None, kept_video: Tensor | None
    ) -> tuple[Tensor, Tensor]:
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
        return self.refine_audio(audio, kept_audio), self.refine_video(video, kept_video)
