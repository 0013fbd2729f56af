"""Embeddings for models of all kinds: ShardedEmbeddings, how many ranks read it, its loader, and the one with a thread."""
