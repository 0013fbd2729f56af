"""The commands that use the separator: `train_cli` trains it."""

from iianet.version import __version__

__all__ = ["__version__"]
