"""What inspect-shards shows."""
