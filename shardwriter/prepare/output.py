"""Files that prepare-lists and prepare-mixtures write: each is there whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from iianet.errors import OutputError
from shardwriter.format.files import atomic_file


def make_folder(folder: Path) -> None:
    """Make a folder where there is none. Raises OutputError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(folder, error) from error


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file that replaces what is there on leaving the block. Raises OutputError where it cannot be written."""
    try:
        with atomic_file(path) as stream:
            yield stream
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path}: cannot be written ({error.strerror or error}); make room or fix the rights of its folder, or choose "
        "another --out folder. Files that are there are whole; run it again to resume"
    )
