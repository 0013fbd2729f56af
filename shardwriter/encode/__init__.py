"""From a shard task to a shard."""
