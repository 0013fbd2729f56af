"""One build at a time writes to a bucket: an object says who, and is renewed while the build runs.

It names who builds, and stops a second build early. What makes a store safe without it: names are never used
twice, and store.json is replaced only by who has read its last version. Ages are measured by the server's clock.
"""

import json
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
from typing import Any

import xxhash

from iianet.errors import StoreError
from shardwriter.format.document import parse_object
from shardwriter.format.files import is_alive
from shardwriter.storage.objects import Conflict, Objects

logger = logging.getLogger(__name__)

LEASE_FILE = ".building.json"
RENEWAL_SECONDS = 60.0
DEAD_AFTER_SECONDS = 600.0
"""A build that has not renewed its lease for so long is dead; one of this machine is asked for by its number."""
LOST_AFTER_SECONDS = 360.0
"""It must have stopped writing before that: what it has just started is tried again for `objects.LONGEST_RETRY`."""
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # runs while a machine sleeps, too


class Lease:
    """A build's own lease, which a thread renews."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._content = json.dumps(
            {
                "holder": f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}",
                "system": this_system(),
                "pid": os.getpid(),
                "id": uuid.uuid4().hex,
            }
        ).encode()
        self._lost = ""
        self._renewed = time.clock_gettime(_CLOCK)
        self._version = self._acquire()

    def check(self) -> None:
        """Call it before anything is written or deleted. Raises StoreError where another build may have started."""
        if lost := self._how_lost():
            raise StoreError(
                f"{self.objects.url}/{LEASE_FILE}: the lease of this build {lost}, so another build may be writing by "
                "now. What is published stays whole. Run the command again to resume"
            )

    def renew(self) -> None:
        """Renew it once. Raises StoreError where that fails for now."""
        start = time.clock_gettime(_CLOCK)
        if self._how_lost():
            return
        try:
            self._version = self.objects.replace(LEASE_FILE, self._content, self._version)
            self._renewed = start
        except Conflict:
            self._lost = "was deleted or taken over"

    def keep(self, ended: threading.Event) -> None:
        """Renew it again and again, until the build ends or it is lost."""
        while not self._lost and not ended.wait(RENEWAL_SECONDS):
            try:
                self.renew()
            except StoreError as error:
                logger.warning("%s; if this lasts, the build stops, for another may take it for dead", error)

    def release(self) -> None:
        """Delete it, if it is ours still."""
        try:
            facts = self.objects.head(LEASE_FILE)
            if facts is not None and facts.version == self._version:
                self.objects.delete([LEASE_FILE])
        except StoreError as error:  # what ended the build is more important
            logger.warning("%s; until then the next build is refused for %.0f minutes", error, DEAD_AFTER_SECONDS / 60)

    def _how_lost(self) -> str:
        """How it was lost, for ever; empty while it is held."""
        silent = time.clock_gettime(_CLOCK) - self._renewed
        if silent > LOST_AFTER_SECONDS and not self._lost:
            self._lost = f"could not be renewed for {silent / 60:.0f} minutes"
        return self._lost

    def _acquire(self) -> str:
        """Write it where no living build has one. Raises StoreError where one has."""
        with suppress(Conflict):
            return self.objects.replace(LEASE_FILE, self._content, None)
        other: dict[str, Any] = {}
        try:
            found = self.objects.read(LEASE_FILE)
            if found is not None:
                with suppress(ValueError):  # one that cannot be read counts until it is old
                    other = parse_object(found[0])
            if found is None or is_dead(other, self.objects.age(LEASE_FILE)):
                return self.objects.replace(LEASE_FILE, self._content, found[1] if found else None)
        except FileNotFoundError:  # it ended just now
            with suppress(Conflict):
                return self.objects.replace(LEASE_FILE, self._content, None)
            other = {}
        except Conflict:
            other = {}
        raise StoreError(
            f"{self.objects.url}: another build is writing to it ({other.get('holder', 'it has just started')}); wait "
            f"for it or stop it. If it died, its lease {LEASE_FILE} counts until {DEAD_AFTER_SECONDS / 60:.0f} minutes "
            "after; delete that object to continue at once"
        )


@contextmanager
def held_lease(objects: Objects) -> Iterator[Lease]:
    """Hold a bucket against other builds.

    Raises:
        StoreError: Another build holds it, which is named; or it cannot be written.
    """
    lease = Lease(objects)
    ended = threading.Event()
    keeper = threading.Thread(target=lease.keep, args=(ended,), name="renew-lease", daemon=True)
    keeper.start()
    try:
        yield lease
    finally:
        ended.set()
        keeper.join()
        lease.release()


def this_system() -> str:
    """What process numbers are counted in: containers may share a host's name, and count for themselves."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # other systems than Linux
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        parts.append(xxhash.xxh3_64_hexdigest(boot + os.readlink("/proc/self/ns/pid").encode())[:8])
    return "-".join(parts)


def is_dead(lease: dict[str, Any], age_seconds: float) -> bool:
    """Whether the build that wrote a lease has ended."""
    if lease.get("system") == this_system() and isinstance(lease.get("pid"), int) and not is_alive(lease["pid"]):
        return True  # else its number may have been given to another process, and its age decides
    return age_seconds > DEAD_AFTER_SECONDS
