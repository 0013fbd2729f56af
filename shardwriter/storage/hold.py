"""Who reads a store in a folder: replaced shards stay until nobody does.

A reader holds the first plan of those that were active when it opened the store, by a lock on its file. Whatever
replaces plans replaces the first one of them, so one lock speaks for all of them, and later readers hold another.
"""

import logging
import os
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from iianet.errors import StoreError
from iianet.regular_file import open_regular
from shardwriter.storage.lock import try_lock, wait_for_lock

logger = logging.getLogger(__name__)

HOLD_SECONDS = 60.0
"""Longest wait for a build that looks whether anybody reads, or deletes what nobody does."""


class FileHold:
    """Keeps the shards of a store on disk as long as this object lives; it ends with the process.

    Sent to another process it holds nothing: the one that sent it does.
    """

    def __init__(self, descriptor: int) -> None:
        self._end = weakref.finalize(self, os.close, descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return {}


def hold_file(plan: Path) -> FileHold | None:
    """Hold an active plan; look at the record once more afterwards, for it may have changed before.

    Returns:
        None where the plan is gone, or its file system has no locks.
    """
    try:
        descriptor = open_regular(plan)
        try:  # others have it for moments only, or while they delete it
            wait_for_lock(descriptor, plan, HOLD_SECONDS, lambda: "a build that deletes it", shared=True)
        except BaseException:
            os.close(descriptor)
            raise
    except (OSError, StoreError) as error:
        logger.info("%s: cannot be locked for reading (%s); a build may delete what it replaces", plan, error)
        return None
    return FileHold(descriptor)


@contextmanager
def readers_of(plan: Path) -> Iterator[str | None]:
    """Why a retired plan must not be deleted, if anybody reads it; None where nobody will any more."""
    with ExitStack() as opened:
        reason = None
        try:
            try:
                descriptor = open_regular(plan, os.O_RDWR)  # network file systems want that
            except PermissionError:  # another user's, in a folder that is ours as well
                descriptor = open_regular(plan)
            opened.callback(os.close, descriptor)
            if not try_lock(descriptor, plan, shared=False):
                reason = "the store is being read"
        except (OSError, StoreError) as error:
            if not isinstance(error, FileNotFoundError):
                reason = f"nobody can say who reads it ({error})"
        yield reason
