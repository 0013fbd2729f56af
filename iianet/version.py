"""Version of the project, which `pyproject.toml` gives and an installation records."""

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "iianet-shards"
NOT_INSTALLED = "0+not.installed"
"""Version of a clone that was never installed."""


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return NOT_INSTALLED


__version__ = _version()
