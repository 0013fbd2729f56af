"""Write and show stores: `format/` is what lies on disk, `build/` fills it, the two commands use both."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from iianet.version import __version__

if TYPE_CHECKING:
    from shardwriter.build.write_store import write_store
    from shardwriter.store.stored_split import StoredSample, StoredSplit, open_store

__all__ = ["StoredSample", "StoredSplit", "__version__", "open_store", "write_store"]


def __getattr__(name: str) -> Any:
    """Load what is asked for when it is asked for: whoever reads the format alone needs none of what builds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "build.write_store" if name == "write_store" else "store.stored_split"
    return getattr(import_module(f"{__name__}.{module}"), name)
