"""The networks: the frozen lip encoder and the IIANet separator (Li et al., ICML 2024)."""

from iianet.version import __version__

__all__ = ["__version__"]
