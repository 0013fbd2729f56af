"""The format on disk, spelt here alone: names, record, plan, index, sample, shard."""
