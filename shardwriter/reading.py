"""Who reads a store: shards that do not count any more stay until nobody does."""

import fcntl
import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shardwriter.format import READING_FILE, STORE_FILE

logger = logging.getLogger(__name__)


class Hold:
    """Keeps what a store holds now on disk, as long as this object lives; the system lets go with the process.

    Sent to another process it holds nothing: the one that sent it does.
    """

    def __init__(self, descriptor: int) -> None:
        self._end = weakref.finalize(self, os.close, descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {}


def hold_for_reading(store: Path) -> Hold | None:
    """Hold a store, to be called before its record is read; None where its file system does not allow it."""
    if not (store / STORE_FILE).is_file():
        return None
    try:
        try:
            descriptor = os.open(store / READING_FILE, os.O_RDONLY | os.O_CREAT, 0o666)
        except OSError:  # a folder that we may only read
            descriptor = os.open(store / READING_FILE, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # others have it for moments only
        except OSError:
            os.close(descriptor)
            raise
    except OSError as error:
        logger.info(
            "%s: cannot be held for reading (%s); --overwrite and --compact may delete what is read", store, error
        )
        return None
    return Hold(descriptor)


def let_readers_hold(store: Path) -> None:
    """Make what readers hold, for those that may not write to the folder."""
    with suppress(OSError):  # whoever cannot write here will be told so by what comes next
        os.close(os.open(store / READING_FILE, os.O_RDONLY | os.O_CREAT, 0o666))


@contextmanager
def kept_from_readers(store: Path) -> Iterator[bool]:
    """Whether nobody reads a store; new readers wait until the block ends."""
    try:
        descriptor = os.open(store / READING_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        logger.info("%s: nobody can tell who reads it (%s), so what was replaced stays", store, error)
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
