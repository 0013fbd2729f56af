"""The weights that a new run starts from, where it draws none: --init_from."""

import logging
from collections.abc import Mapping
from pathlib import Path

from iianet.config.schema import Config
from iianet.errors import ConfigError
from iianet.inference.trained import open_trained, warn_of_other_rows
from iianet.paths import expand_path
from iianet.separator.model import IIANet

logger = logging.getLogger(__name__)

DIGITS = 12
"""Digits of a digest in a message."""


def refuse_two_beginnings(init_from: str | None, resume: str | None) -> None:
    """Raise ConfigError where a command line names weights for a new run, and a checkpoint that one resumes from."""
    if init_from is not None and resume not in (None, "auto"):
        raise ConfigError(
            f"--init_from {init_from} begins a new run, and --resume {resume} continues one; give one of the two. "
            "--resume auto goes with --init_from: a run that there is resumes, else a new one begins from these weights"
        )


def load_initial_weights(init_from: str, config: Config, folder: Path, model: IIANet) -> Mapping[str, str]:
    """Fill the separator of a new run.

    Args:
        init_from: Value of --init_from.
        config: Config of the run.
        folder: Folder of the run's results.
        model: Separator to fill.

    Returns:
        What the run records of the file: its `path`, absolute, and its `sha256`.

    Raises:
        ConfigError: The config contradicts the file, or the file lies among the results that the run replaces.
        WeightsError: The file is missing or damaged, or its weights do not fit the config's network.
    """
    path = expand_path(init_from).absolute()
    if path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"--init_from {init_from}: lies in {folder}, whose files this new run would move aside or replace; give "
            "the run another name, --set exp.exp_name=NAME, or copy the file elsewhere. To continue the run that is "
            "there, give --resume last alone"
        )
    trained = open_trained(path, config, trains_on=True)
    warn_of_other_rows(trained, config)
    model.load_state_dict(trained.model.state_dict())
    logger.info(
        "a new run begins from the weights in %s (sha256 %s...); its optimizer starts anew",
        path,
        trained.digest[:DIGITS],
    )
    return {"path": str(path), "sha256": trained.digest}
