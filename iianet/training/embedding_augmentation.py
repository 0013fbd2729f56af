"""Light augmentation of embeddings in the training step, whether they were stored or just encoded."""

import torch
from torch import Tensor

from iianet.config.data_section import EmbeddingAugmentation
from iianet.errors import ConfigError


def refuse_unfit_mask(options: EmbeddingAugmentation, frames: int) -> None:
    """Raise ConfigError where the longest mask is longer than an example of so many frames."""
    if options.time_mask > frames:
        raise ConfigError(
            f"datamodule.data_config.embedding_augmentation.time_mask is {options.time_mask} frames, and an example "
            f"has {frames}; expected at most that, and less where something is to be left to see"
        )


def augment_embedding(embedding: Tensor, options: EmbeddingAugmentation) -> Tensor:
    """Mask a run of frames, drop channels and add noise, each example on its own.

    Random numbers are drawn from the default generator of the embedding's device, which the training step seeds.

    Args:
        embedding: `(batch, dim, frames)`, float32.
        options: Amount of each; 0 skips it.

    Returns:
        `(batch, dim, frames)`, float32; `embedding` itself where nothing is asked for.
    """
    batch, dim, frames = embedding.shape
    if options.noise:
        spread = embedding.std(dim=(1, 2), keepdim=True)
        embedding = embedding + options.noise * spread * torch.randn_like(embedding)
    if options.channel_dropout:
        kept = torch.rand(batch, dim, 1, device=embedding.device) >= options.channel_dropout
        embedding = embedding * kept / (1 - options.channel_dropout)  # the expected value stays what it was
    if options.time_mask:
        length = torch.randint(min(options.time_mask, frames) + 1, (batch, 1, 1), device=embedding.device)
        start = (torch.rand(batch, 1, 1, device=embedding.device) * (frames - length + 1)).long()
        frame = torch.arange(frames, device=embedding.device)
        embedding = embedding.masked_fill((frame >= start) & (frame < start + length), 0)
    return embedding
