"""Write and show stores: `format.py` is the format on disk, `build.py` fills it, the two commands use both."""

from shardwriter.write_store import write_store

__all__ = ["write_store"]
