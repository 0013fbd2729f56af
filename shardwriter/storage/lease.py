"""One build at a time writes to a store behind a URL: each claims it by an object that it keeps fresh.

All times are the server's own, so that clocks of machines do not matter. A listing shows every object that was written
before it, so of two builds that start at once at least one sees the other; both may refuse.
"""

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import xxhash

from iianet.errors import StoreError
from shardwriter.format.files import is_alive
from shardwriter.storage.objects import RemoteFile, RemoteStore

logger = logging.getLogger(__name__)

CLAIM_PREFIX = ".building-"
REFRESH_SECONDS = 60.0
DEAD_AFTER_SECONDS = 600.0
"""A build that has not written its claim for so long is dead; one of this machine is asked for by its number."""
LOST_AFTER_SECONDS = 540.0
"""It must have stopped writing before that. It is asked before each attempt, and one that was begun goes on: a machine
that sleeps while it uploads a tar may end it later, and what others wrote meanwhile is then found to be damaged."""
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while a machine sleeps


class Claim:
    """A build's own claim, which a thread keeps fresh."""

    def __init__(self, remote: RemoteStore, name: str, words: bytes) -> None:
        self.remote = remote
        self.name = name
        self._words = words
        self._is_deleted = False
        self._written = time.clock_gettime(_CLOCK)
        self.write()

    def write(self) -> None:
        """Write it once more. Raises StoreError where that fails."""
        begun = time.clock_gettime(_CLOCK)
        self.remote.write(self.name, self._words)
        if begun - self._written < LOST_AFTER_SECONDS:  # else another build may have begun meanwhile, for good
            self._written = begun

    def check(self) -> None:
        """To be called before anything is written. Raises StoreError where another build may have begun meanwhile."""
        unwritten = time.clock_gettime(_CLOCK) - self._written
        if self._is_deleted or unwritten > LOST_AFTER_SECONDS:
            why = "was deleted" if self._is_deleted else f"could not be written for {unwritten / 60:.0f} minutes"
            raise StoreError(
                f"{self.remote.url}/{self.name}: this build's claim {why}, so another build may be writing by now; "
                "what is whole up there stays so. Run the command again to go on"
            )

    def keep(self, ended: threading.Event) -> None:
        """Write it again and again, unless somebody deleted it."""
        while not self._is_deleted and not ended.wait(REFRESH_SECONDS):
            try:
                self.remote.read(self.name)
                self.write()
            except FileNotFoundError:
                self._is_deleted = True
            except StoreError as error:
                logger.warning("%s; if this lasts, the build stops, for another may take it for dead", error)


@contextmanager
def claimed(remote: RemoteStore) -> Iterator[Claim]:
    """Hold a store against other builds.

    Raises:
        StoreError: Another build holds it, which is named; or it cannot be written.
    """
    name = f"{CLAIM_PREFIX}{_this_system()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    words = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}"
    claim = Claim(remote, name, words.encode())
    try:
        _refuse_others(remote, name)
        ended = threading.Event()
        keeper = threading.Thread(target=claim.keep, args=(ended,), daemon=True)
        keeper.start()
        try:
            yield claim
        finally:
            ended.set()
            keeper.join()
    finally:
        try:
            remote.delete(name)
        except StoreError as error:  # and what ended the build is told, not this
            logger.warning("%s; until then the next build is refused for %.0f minutes", error, DEAD_AFTER_SECONDS / 60)


def _refuse_others(remote: RemoteStore, name: str) -> None:
    """Raise StoreError where another build is alive; the claims of dead ones are deleted."""
    listed = remote.list()
    for other in sorted(listed):
        if not other.startswith(CLAIM_PREFIX) or other == name:
            continue
        if _is_dead(other, listed[other], listed.get(name)):
            remote.delete(other)
            continue
        try:
            holder = remote.read(other).decode(errors="replace")
        except FileNotFoundError:  # it ended just now
            continue
        raise StoreError(
            f"{remote.url}: another build is writing to it ({holder}); wait for it or stop it. If it died, its claim "
            f"{other} counts until {DEAD_AFTER_SECONDS / 60:.0f} minutes after; delete that object to go on at once"
        )


def _this_system() -> str:
    """What process numbers are counted in: containers may bear one host's name, and number for themselves."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # elsewhere than on Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        parts.append(xxhash.xxh3_64_hexdigest(boot + os.readlink("/proc/self/ns/pid").encode())[:8])
    return "-".join(parts)


def _is_dead(name: str, other: RemoteFile, own: RemoteFile | None) -> bool:
    host, _, rest = name.removeprefix(CLAIM_PREFIX).rpartition(".")[0].rpartition(".")
    if host == _this_system() and rest.isdecimal() and not is_alive(int(rest)):
        return True  # else its number may have been given anew, and its age tells
    if own is None or other.modified is None or own.modified is None:
        return False
    return own.modified - other.modified > DEAD_AFTER_SECONDS
