"""Paths as users write them, by a command line, a config or the API: `~` and `$VAR` are expanded here alone."""

import os
import re
from pathlib import Path

from iianet.errors import ConfigError

LONGEST_NAME = 255
"""Bytes of the longest name of a file."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))", re.ASCII)


def expand_path(word: str | os.PathLike[str]) -> Path:
    """The path that a user means: `~`, `~user`, `$VAR` and `${VAR}` are what a shell would make of them.

    What exists under the very name that was given is that, whatever signs are in it.

    Raises:
        ConfigError: A variable is not set, a user's folder is not known, or no file can have such a name.
    """
    given = os.fspath(word)
    _refuse_impossible(given)
    if not ("$" in given or given.startswith("~")) or os.path.lexists(given):
        return Path(given)

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if name not in os.environ:
            raise ConfigError(f"{given}: the environment variable {name} is not set; set it, or write the path out")
        return os.environ[name]

    try:
        return Path(_VARIABLE.sub(value, given)).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{given}: the folder that ~ stands for is not known; write the path out") from error


def expand_word(word: str) -> str:
    """What a user named by a word that may be a URL too: URLs as they are, paths as `expand_path` expands them."""
    if scheme(word):
        return word
    if "$" in word or word.startswith("~"):
        return str(expand_path(word))
    _refuse_impossible(word)
    return word


def _refuse_impossible(word: str) -> None:
    """Raise ConfigError where the system would raise an error of its own for looking whether there is such a file."""
    for name in word.split("/"):
        size = len(os.fsencode(name))
        if "\0" in name or (size > LONGEST_NAME and not set("{*?[") & set(name)):  # a pattern stands for shorter names
            found = "a zero byte in it" if "\0" in name else f"{size} bytes"
            raise ConfigError(
                f"{word[:80]}: no file can have a name with {found}; expected at most {LONGEST_NAME} bytes, none of "
                "them zero. Correct the path"
            )


def scheme(word: str) -> str | None:
    """What a URL begins with, such as `http`, in lower case; None of a path."""
    found = _SCHEME.match(word)
    return found[1].lower() if found else None
