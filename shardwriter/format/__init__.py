"""The format on disk: names, records, plans, indexes, samples, shards."""
