"""One build at a time writes to a store."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from configs.errors import StoreError
from shardwriter.format import LOCK_FILE, TEMPORARY_PREFIX


@contextmanager
def build_lock(store: Path) -> Iterator[None]:
    """Hold a store against other builds; the system drops the lock with the process, however it ends.

    Raises:
        StoreError: Another build holds it, which is named; or the folder cannot be written, now or later.
    """
    try:
        store.mkdir(parents=True, exist_ok=True)
        stream = (store / LOCK_FILE).open("a+")
    except OSError as error:
        raise StoreError(f"{store}: cannot be written ({error.strerror}); choose another --shards folder") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            raise StoreError(
                f"{store}: another build is writing to it ({stream.read().strip()}); wait for it or stop it"
            ) from error
        except OSError as error:
            raise StoreError(
                f"{store}: cannot be locked against other builds ({error.strerror}); its file system must know flock"
            ) from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
        stream.flush()
        for leftover in store.glob(f"{TEMPORARY_PREFIX}*"):  # of builds that died: none is alive but us
            leftover.unlink(missing_ok=True)
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"{error.filename or store}: {error.strerror or error}. Every published shard is whole; make room or "
                "mend the folder, and run the command again to go on."
            ) from error
