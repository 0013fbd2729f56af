"""IIANet: a mixture and the embedding of one speaker's mouth in, that speaker's voice out (Li et al., ICML 2024).

Source: JusperLee/IIANet. A learned filter bank turns the mixture into columns, the separator makes a mask for them, and
the transposed filter bank turns the masked columns back into samples.
"""

from torch import Tensor, nn

from iianet.errors import ConfigError
from iianet.separator.blocks import Separator
from iianet.separator.layers import GlobalLayerNorm


class IIANet(nn.Module):
    """Audio-visual separator; the arguments are the keys of a config's `audionet_config`. The defaults are published.

    In the published configuration the forward uses every parameter, so none is kept for loading only.

    Args:
        out_channels: Channels of the audio features between iterations.
        in_channels: Channels inside the audio path.
        vpre_channels: Channels of the embedding.
        vin_channels: Channels of the video features between iterations.
        vout_channels: Channels inside the video path.
        num_blocks: Iterations of the separator, at least 1; the first 4 see the video.
        upsampling_depth: Scales of either path, at least 2.
        enc_kernel_size: Length of the filters, milliseconds.
        num_sources: Sources estimated at once.
        sample_rate: Sample rate of the mixture, Hz.

    Raises:
        ConfigError: A value is too small for the network to be built.
    """

    def __init__(
        self,
        out_channels: int = 128,
        in_channels: int = 512,
        vpre_channels: int = 512,
        vin_channels: int = 64,
        vout_channels: int = 64,
        num_blocks: int = 16,
        upsampling_depth: int = 5,
        enc_kernel_size: int = 1,
        num_sources: int = 1,
        sample_rate: int = 16000,
    ) -> None:
        super().__init__()
        self.num_sources = num_sources
        self.sample_rate = sample_rate
        self.kernel_size = enc_kernel_size * sample_rate // 1000
        self.stride = self.kernel_size // 4
        self.num_filters = self.kernel_size // 2 + 1
        _check_at_least("num_sources", num_sources, 1)
        _check_at_least("num_blocks", num_blocks, 1)
        _check_at_least("upsampling_depth", upsampling_depth, 2)
        _check_at_least("enc_kernel_size, in samples,", self.kernel_size, 4)
        padding = self.kernel_size // 2
        self.encoder = nn.Conv1d(1, self.num_filters, self.kernel_size, self.stride, padding, bias=False)
        self.encoder_norm = GlobalLayerNorm(self.num_filters)
        self.audio_bottleneck = nn.Conv1d(self.num_filters, out_channels, 1)
        self.video_bottleneck = nn.Conv1d(vpre_channels, vin_channels, 3, padding=1)
        self.separator = Separator(
            out_channels, in_channels, vin_channels, vout_channels, depth=upsampling_depth, num_blocks=num_blocks
        )
        self.mask = nn.Sequential(nn.PReLU(), nn.Conv1d(out_channels, num_sources * self.num_filters, 1), nn.ReLU())
        self.decoder = nn.ConvTranspose1d(
            num_sources * self.num_filters, num_sources, self.kernel_size, self.stride, padding, bias=False
        )
        nn.init.xavier_uniform_(self.encoder.weight)
        nn.init.xavier_uniform_(self.decoder.weight)

    def forward(self, mixture: Tensor, embedding: Tensor) -> Tensor:
        """Separate.

        Args:
            mixture: `(batch, num_samples)`, any number of samples.
            embedding: `(batch, vpre_channels, frames)`, over the same stretch of time.

        Returns:
            Estimate, `(batch, num_sources, num_samples)`.
        """
        columns = self.encoder(self._pad(mixture).unsqueeze(1))  # (batch, num_filters, columns)
        audio = self.audio_bottleneck(self.encoder_norm(columns))  # (batch, out_channels, columns)
        video = self.video_bottleneck(embedding)  # (batch, vin_channels, frames)
        mask = self.mask(self.separator(audio, video))  # (batch, num_sources * num_filters, columns)
        mask = mask.unflatten(1, (self.num_sources, self.num_filters))  # (batch, num_sources, num_filters, columns)
        masked = (mask * columns.unsqueeze(1)).flatten(1, 2)  # (batch, num_sources * num_filters, columns)
        padded: Tensor = self.decoder(masked)  # (batch, num_sources, padded samples)
        start = self.kernel_size - self.stride
        return padded[..., start : start + mixture.shape[-1]]  # (batch, num_sources, num_samples)

    def _pad(self, mixture: Tensor) -> Tensor:
        """Add zeros, so that all filters fit and every sample is seen by as many: `(batch, padded samples)`."""
        edge = self.kernel_size - self.stride
        rest = self.kernel_size - (self.stride + mixture.shape[-1]) % self.kernel_size
        return nn.functional.pad(mixture, (edge, rest + edge))


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"audionet.audionet_config: {name} is {value}; it must be at least {least}")
