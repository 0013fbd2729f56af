"""What the commands share: flags that read a config, spelling of flags, logging, and how errors end."""

import argparse
import json
import logging
import os
import site
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from iianet.errors import FeatureStoreError
from iianet.interruption import INTERRUPTED, TERMINATED, Terminated
from iianet.version import __version__


def add_version_flag(parser: argparse.ArgumentParser) -> None:
    """Add --version, which prints the command's name and the project's version."""
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add --conf_dir, --data_root and --set."""
    parser.add_argument(
        "--conf_dir",
        required=True,
        metavar="FILE",
        help="YAML config, as IIANet's train.py takes; LRS2-IIANet.yml, LRS3-IIANet.yml and Vox2-IIANet.yml come with "
        "the project and are found from any folder",
    )
    add_override_flags(parser)


def add_override_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --data_root and --set."""
    parser.add_argument(
        "--data_root", metavar="DIR", help="folder that relative paths of the corpus and of the store start from"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override any config key by its dotted path, e.g. --set training.epochs=10 optimizer.lr=5e-4",
    )


def config_overrides(arguments: argparse.Namespace) -> list[str]:
    """The --set overrides, and --data_root as one of them; later ones win."""
    overrides = [override for group in arguments.overrides for override in group]
    if arguments.data_root is not None:
        overrides.append(f"datamodule.data_config.data_root={json.dumps(arguments.data_root, ensure_ascii=False)}")
    return overrides


def underscored(argv: Sequence[str]) -> list[str]:
    """Spell flags with underscores: --conf-dir is --conf_dir."""
    return [_underscore(word) if word.startswith("--") else word for word in argv]


def _underscore(word: str) -> str:
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def run_command(command: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command with logging to the terminal; an error that a user can fix ends in its message and exit code."""
    handler = _TerminalHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.setLevel(logging.INFO if _is_first_rank() else logging.ERROR)  # a message of all ranks appears once
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for chatty in ("botocore", "aiobotocore"):  # they log where they found credentials
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        return command(underscored(sys.argv[1:] if argv is None else argv))
    except FeatureStoreError as error:
        logging.getLogger(command.__module__).debug("stopped", exc_info=True)
        sys.stderr.write(f"error: {_own_words(error)}\n")
        return error.exit_code
    except KeyboardInterrupt as interruption:
        was_terminated = isinstance(interruption, Terminated)
        sys.stderr.write("terminated\n" if was_terminated else "interrupted\n")
        return TERMINATED if was_terminated else INTERRUPTED


def own_environment() -> dict[str, str]:
    """Environment in which `python -m` imports this very code, whatever lies in the working directory.

    A clone's folder is put into PYTHONPATH. The folder of installed packages is not, since it would then come before
    the standard library.
    """
    home = str(Path(__file__).absolute().parents[1])
    given = os.environ.get("PYTHONPATH", "")
    paths = [given] if home in site.getsitepackages() else [home, given]
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _own_words(error: FeatureStoreError) -> str:
    """Message of an error, without the traceback that a loader worker puts before it."""
    message = str(error)
    return message.rstrip().rpartition(f"{type(error).__name__}: ")[2] if message.startswith("Caught ") else message


def _is_first_rank() -> bool:
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


class _TerminalHandler(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
