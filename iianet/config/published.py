"""The published configs, which come with the project: `--conf_dir LRS2-IIANet.yml` works from any folder."""

import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)

PATTERN = "*-IIANet.yml"
"""File names of the published configs; setup.py puts these files into the wheel."""
USUAL_FOLDERS = (Path(), Path("configs"))
"""Folders in which a command line names a published config."""


def published_configs() -> dict[str, Path]:
    """File names of the published configs, and where they lie: in the installed package, or in the clone's configs/."""
    packaged, clone = Path(__file__).with_name("published_files"), Path(__file__).absolute().parents[2]
    if not packaged.is_dir() and (clone / "pyproject.toml").is_file():
        packaged = clone / "configs"
    return {path.name: path for path in sorted(packaged.glob(PATTERN))}


def find_config(path: Path) -> Path:
    """Choose the file to read for a config's path.

    Args:
        path: As the user gave it.

    Returns:
        The published config of that name, where `path` is `NAME` or `configs/NAME` and nothing is there; else `path`.
    """
    published = published_configs().get(path.name)
    if published is None or path.parent not in USUAL_FOLDERS or os.path.lexists(path):
        return path
    logger.info("%s: no such file; using the published config %s", path, published)
    return published
