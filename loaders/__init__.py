"""Read stores for training: `SeparationData` for IIANet, `ShardedEmbeddings` for any other model."""

from iianet.version import __version__
from loaders.embeddings.loader import EmbeddingLoader
from loaders.embeddings.prefetched import PrefetchedEmbeddings
from loaders.embeddings.sharded_embeddings import EmbeddingBatch, ShardedEmbeddings

__all__ = ["EmbeddingBatch", "EmbeddingLoader", "PrefetchedEmbeddings", "ShardedEmbeddings", "__version__"]
