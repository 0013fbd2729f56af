"""Who runs the shard tasks: this process, several, ranks, or a Ray cluster."""
