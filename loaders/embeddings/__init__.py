"""What ShardedEmbeddings is made of: which epoch an iteration reads, and the loader that resumes."""
