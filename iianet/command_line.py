"""What the commands share: flags that read a config, spelling of flags, logging, and how errors end."""

import argparse
import json
import logging
import os
import site
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from iianet.errors import ConfigError, FeatureStoreError
from iianet.interruption import INTERRUPTED, TERMINATED, Terminated
from iianet.launch import is_first_rank
from iianet.paths import expand_word
from iianet.terminal import complain, terminal
from iianet.version import __version__
from iianet.wording import either, nearest

SOME_FAILED = 3
"""Exit code of a command that has ended, and could not use some of what it was given."""
_EXAMPLE = "example:\n  "


class _Help(argparse.HelpFormatter):
    """Wraps all of --help but the example."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(_EXAMPLE) else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """Parser with --version, whose errors are one line that names what was perhaps meant, not pages of usage.

    Args:
        prog: Name of the command.
        description: What it does, and its exit codes.
        example: A command line that --help shows, to be copied.
    """

    def __init__(self, prog: str, description: str, example: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=f"{description} Flags may be written with - or _.",
            epilog=example and f"{_EXAMPLE}{example}",
            formatter_class=_Help,
            allow_abbrev=False,
        )
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Read a command line.

        Raises:
            ConfigError: A flag is unknown or missing, or a value is not allowed.
        """
        for word in argv:
            name = word.partition("=")[0]
            if name.startswith("--") and name != "--" and name not in self._option_string_actions:
                near = nearest(name, self._option_string_actions)
                cure = f"did you mean {near}?" if near else f"{self.prog} --help shows all flags"
                raise ConfigError(f"{name}: unknown flag; {cure}")
        return self.parse_args(argv)

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError instead of printing the usage and exiting."""
        about_one = message.removeprefix("argument ")
        raise ConfigError(about_one if about_one != message else f"{message}; {self.prog} --help shows all flags")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = list(map(str, action.choices))
            near = nearest(str(value), choices)
            meant = f"; did you mean {near}?" if near else ""
            raise argparse.ArgumentError(action, f"found {value!r}, expected {either(choices)}{meant}")


def at_least_one(text: str) -> int:
    """Read a count of a flag, for argparse's `type`."""
    return _whole(text, 1, "above 0")


def at_least_zero(text: str) -> int:
    """Read a count that may be 0, for argparse's `type`."""
    return _whole(text, 0, "from 0 on")


def _whole(text: str, least: int, expected: str) -> int:
    """Read a number as it is usually written; Python's int reads 1_0 and more."""
    if not text.isascii() or not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number {expected}")
    return int(text)


def add_config_flags(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add --conf_dir, --data_root and --set.

    Args:
        parser: Parser to add them to.
        default: Config that is taken where none is given, in words; None where one must be given.
    """
    parser.add_argument(
        "--conf_dir",
        required=default is None,
        type=expand_word,
        metavar="FILE",
        help="YAML config, as IIANet's train.py takes; LRS2-IIANet.yml, LRS3-IIANet.yml and Vox2-IIANet.yml come with "
        "the project and are found from any folder. Paths in it, such as train_dir, start at the working directory"
        + (f" (default: {default})" if default else ""),
    )
    add_override_flags(parser)


def add_override_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add --data_root and --set."""
    parser.add_argument(
        "--data_root",
        metavar="DIR",
        help="folder that relative paths in the corpus' lists and in the store start from",
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
    """The --set overrides, and --data_root, expanded as a key's value is, as one of them; later ones win."""
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
    level = logging.INFO if is_first_rank() else logging.ERROR  # a message of all ranks appears once
    with terminal(level):
        try:
            return command(underscored(sys.argv[1:] if argv is None else argv))
        except FeatureStoreError as error:
            logging.getLogger(command.__module__).debug("stopped", exc_info=True)
            complain(f"error: {_own_words(error)}")
            return error.exit_code
        except KeyboardInterrupt as interruption:
            was_terminated = isinstance(interruption, Terminated)
            complain("terminated" if was_terminated else "interrupted")
            return TERMINATED if was_terminated else INTERRUPTED


def command(run: Callable[[list[str], str], int], name: str) -> Callable[..., None]:
    """The `main` of a command: it takes the words of its command line, by default those of this process, and its name.

    Args:
        run: Runs the command with its words, and the name that its help and errors have; returns the exit code.
        name: Name of the command where it is installed.
    """

    def main(argv: Sequence[str] | None = None, prog: str = name) -> None:
        sys.exit(run_command(lambda words: run(words, prog), argv))

    return main


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
