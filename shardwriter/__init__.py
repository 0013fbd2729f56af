"""Write and show stores: `format/` is what lies on disk, `build/` fills it, the two commands use both."""

from typing import TYPE_CHECKING, Any

from iianet.version import __version__

if TYPE_CHECKING:
    from shardwriter.build.write_store import write_store

__all__ = ["__version__", "write_store"]


def __getattr__(name: str) -> Any:
    """Load `write_store` when it is asked for: whoever reads the format alone needs none of what builds."""
    if name == "write_store":
        from shardwriter.build.write_store import write_store

        return write_store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
