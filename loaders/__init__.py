"""Read stores for training: `SeparationData` for IIANet, `ShardedEmbeddings` for any other model."""

from loaders.prefetch import PrefetchedEmbeddings
from loaders.sharded_embeddings import EmbeddingBatch, ShardedEmbeddings

__all__ = ["EmbeddingBatch", "PrefetchedEmbeddings", "ShardedEmbeddings"]
