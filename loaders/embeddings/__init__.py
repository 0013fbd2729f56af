"""What ShardedEmbeddings is made of: how many ranks read it, the loader that resumes, the one with a thread."""
