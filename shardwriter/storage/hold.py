"""Who reads a store: shards that do not count any more stay until nobody does.

A reader holds the first plan of those that counted when it opened the store, by a lock on its file. Whatever takes the
place of some plans takes that of the first one of them, so that one lock speaks for all of them, and those who came
later hold another.
"""

import fcntl
import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class Hold:
    """Keeps what a store held when it was opened on disk, as long as this object lives; it ends with the process.

    Sent to another process it holds nothing: the one that sent it does.
    """

    def __init__(self, descriptor: int) -> None:
        self._end = weakref.finalize(self, os.close, descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {}


def hold_for_reading(plan: Path) -> Hold | None:
    """Hold a plan that counts; look at the record once more afterwards, for it may have changed before.

    Returns:
        None where the plan is gone, or its file system knows no locks.
    """
    try:
        descriptor = os.open(plan, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # others have it for moments only, or while they delete it
        except OSError:
            os.close(descriptor)
            raise
    except OSError as error:
        logger.info("%s: cannot be held for reading (%s); a build may delete what it replaces", plan, error)
        return None
    return Hold(descriptor)


@contextmanager
def kept_from_readers(plan: Path) -> Iterator[str | None]:
    """Why a plan that counts no more is not to be deleted, if anybody reads it; None where nobody will any more."""
    try:
        try:
            descriptor = os.open(plan, os.O_RDWR)  # network file systems want that
        except PermissionError:  # another user's, in a folder that is ours as well
            descriptor = os.open(plan, os.O_RDONLY)
    except OSError as error:
        yield f"nobody can tell who reads it ({error})"
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            reason = None
        except BlockingIOError:
            reason = "the store is being read"
        except OSError as error:
            reason = f"nobody can tell who reads it ({error})"
        yield reason
    finally:
        os.close(descriptor)
