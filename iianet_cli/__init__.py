"""The commands that use the separator: `train_cli` trains it."""

import os

from iianet.version import __version__

__all__ = ["__version__"]

os.environ["MPLBACKEND"] = (
    "agg"  # pictures go to files; a notebook's backend would end torchmetrics' import of matplotlib
)
