"""Read stores for training: `SeparationData` for IIANet, `ShardedEmbeddings` for any other model."""

from loaders.sharded_embeddings import EmbeddingBatch, PrefetchedEmbeddings, ShardedEmbeddings

__all__ = ["EmbeddingBatch", "PrefetchedEmbeddings", "ShardedEmbeddings"]
