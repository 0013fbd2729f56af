"""What ShardedEmbeddings is made of; `epochs.py` keeps the place in an epoch for the loaders of training too."""
