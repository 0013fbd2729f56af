"""The commands that use the separator: `train_cli` trains it, `separate_cli` separates recordings with it."""

import os

from iianet.version import __version__

__all__ = ["__version__"]

# Pictures go to files. A notebook's backend that is not installed here would end torchmetrics' import of matplotlib.
os.environ["MPLBACKEND"] = "agg"
