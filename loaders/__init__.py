"""Read stores for training: `SeparationData` for IIANet, `ShardedEmbeddings` for any other model."""

from iianet.version import __version__
from loaders.embeddings.loader import EmbeddingLoader
from loaders.sharded_embeddings import EmbeddingBatch, PrefetchedEmbeddings, ShardedEmbeddings

__all__ = ["EmbeddingBatch", "EmbeddingLoader", "PrefetchedEmbeddings", "ShardedEmbeddings", "__version__"]
