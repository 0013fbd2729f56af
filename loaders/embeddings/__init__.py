"""What ShardedEmbeddings is made of: which epoch an iteration reads, the loader that resumes, the one with a thread."""
