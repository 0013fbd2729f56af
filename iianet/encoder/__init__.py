"""The frozen lip encoder: mouths in, embeddings out."""
