"""Read stores for training: `SeparationData` for IIANet, `ShardedEmbeddings` for any other model."""

from loaders.sharded_embeddings import EmbeddingBatch, ShardedEmbeddings

__all__ = ["EmbeddingBatch", "ShardedEmbeddings"]
