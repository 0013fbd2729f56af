"""Embeddings for any model: ShardedEmbeddings, how many ranks read it, its loader, and the one with a thread."""
