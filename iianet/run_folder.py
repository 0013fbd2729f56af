"""The folder of a training run's results, which one training at a time may write to."""

import errno
import fcntl
import glob
import json
import logging
import os
import shutil
import socket
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

from iianet.errors import ConfigError, TrainingError
from iianet.regular_file import open_regular
from iianet.wording import counted, readable_bytes

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last.ckpt"
LOCK_FILE = ".running"
PARTIAL_SUFFIX = ".partial"
"""Suffix of a file that is being written; the next run deletes what a killed one left."""
LONGEST_NAME = 255 - len("-before-20260101-000000")
"""Bytes of an exp_name, so that its folder can be moved aside."""
PROBED = 1 << 16
"""Bytes that are written to see whether a folder takes them."""
NAMED_EARLIER = 5
"""Earlier runs that a message names."""
NO_LOCKS = {errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
"""Answers of a file system that has no locks."""
NO_ROOM = {errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.EROFS}
"""Answers of a file system that is full."""
REFUSED = {*NO_ROOM, errno.EACCES, errno.EIO, errno.EISDIR, errno.ENOENT, errno.EPERM, errno.ESTALE}
"""Answers of a file system that does not take what is written: from a full disk to a folder that is gone."""


class Holder(NamedTuple):
    """The process that writes to a run's folder, as its lock file records it."""

    host: str
    pid: int
    since: str

    @classmethod
    def read(cls, lock: IO[str]) -> "Holder | None":
        """What a lock file records; None where it is nothing, or nothing of ours."""
        lock.seek(0)
        try:
            host, pid, since = json.loads(lock.read(1000))
            return cls(host=str(host), pid=int(pid), since=str(since))
        except (TypeError, ValueError):
            return None

    @classmethod
    def me(cls) -> "Holder":
        """This process."""
        return cls(host=socket.gethostname(), pid=os.getpid(), since=f"{datetime.now():%Y-%m-%d %H:%M:%S}")

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended: it was on this machine, where no process has its number now."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:  # it is another user's
            return False
        return self.pid == os.getpid()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since},"


class RunFolder:
    """Folder of the results of one experiment.

    Args:
        parent: Folder of all experiments.
        name: exp.exp_name.

    Attributes:
        path: The folder, absolute.

    Raises:
        ConfigError: The name is too long for a folder.
    """

    def __init__(self, parent: Path, name: str) -> None:
        size = len(os.fsencode(name))
        if size > LONGEST_NAME:
            raise ConfigError(
                f"exp.exp_name: {name[:20]}... has {size} bytes, expected at most {LONGEST_NAME}, since it names a "
                "folder; give a shorter one"
            )
        self.path = parent.absolute() / name

    @property
    def last(self) -> Path:
        """Path of the checkpoint that `--resume last` takes."""
        return self.path / LAST_CHECKPOINT

    @contextmanager
    def claimed(self, fresh: bool, room: int = 0) -> Iterator[None]:
        """Let this process be the only training that writes to the folder, while the block runs.

        Args:
            fresh: Whether this is a new run, before which the results of an earlier one are moved aside.
            room: Bytes that results need at least.

        Raises:
            ConfigError: Another training writes there, the folder cannot be written to, or its disk is full.
        """
        with ExitStack() as held:
            held.callback(_release, self._lock())
            self._refuse_full(room)
            if fresh and self.last.exists():
                self._move_aside()
                held.close()
                held.callback(_release, self._lock())
            try:
                for partial in self.path.glob(f"*{PARTIAL_SUFFIX}"):
                    _delete_partial(partial)
            except OSError as error:
                raise _unwritable(self.path, error) from error
            yield

    def _lock(self) -> IO[str]:
        """Make the folder, lock it, and record who did. The lock ends with the process, however that ends."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = _open(self.path / LOCK_FILE)
        except (OSError, ValueError) as error:
            raise _unwritable(self.path, error) from error
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the process: loader workers do not inherit it
        except OSError as error:
            holder = Holder.read(lock)
            refusal = None
            if error.errno in (errno.EACCES, errno.EAGAIN):
                refusal = self._taken(holder or "another process", "Wait until it has ended, or stop it")
            elif error.errno not in NO_LOCKS:
                refusal = _unwritable(self.path, error)
            elif holder is not None and not holder.is_gone:
                refusal = self._taken(holder, f"If it has ended, delete {self.path / LOCK_FILE}")
            if refusal is not None:
                lock.close()
                raise refusal from error
            logger.warning("%s: its file system has no locks; %s says who is training there", self.path, LOCK_FILE)
        try:
            lock.truncate(0)
            lock.write(json.dumps(Holder.me()))
            lock.flush()
        except OSError as error:
            lock.close()
            raise _unwritable(self.path, error) from error
        return lock

    def _taken(self, holder: Holder | str, cure: str) -> ConfigError:
        return ConfigError(
            f"{self.path}: {holder} is training there; expected one training at a time. {cure}; or give this one "
            "another name: --set exp.exp_name=NAME"
        )

    def _refuse_full(self, room: int) -> None:
        free = shutil.disk_usage(self.path).free
        if free < room:
            raise ConfigError(
                f"{self.path}: its disk has {readable_bytes(free)} left; expected at least {readable_bytes(room)}, for "
                "two checkpoints. Make room, or let results go elsewhere: --exp_dir DIR"
            )

    def _move_aside(self) -> None:
        """Move the results of an earlier run of the same name, so that a new one overwrites nothing."""
        kept = self.path.with_name(f"{self.path.name}-before-{datetime.now():%Y%m%d-%H%M%S}")
        try:
            self.path.rename(kept)
        except OSError as error:
            raise ConfigError(
                f"{self.path}: holds an earlier run, which cannot be moved to {kept}: {_reason(error)}. Resume it with "
                "--resume last, move it yourself, or give this one another name: --set exp.exp_name=NAME"
            ) from error
        logger.warning(
            "%s held an earlier run, now in %s. To resume that one: move it back, --resume last", self.path, kept
        )
        earlier = sorted(path.name for path in self.path.parent.glob(f"{glob.escape(self.path.name)}-before-*"))
        if len(earlier) > 1:
            more = ", ..." if len(earlier) > NAMED_EARLIER else ""
            logger.info(
                "%s are kept beside it: %s%s; delete those that you do not need",
                counted(len(earlier), "earlier run"),
                ", ".join(earlier[:NAMED_EARLIER]),
                more,
            )


def refuse_unwritable(folder: Path) -> None:
    """Raise ConfigError where results cannot be written to a folder, before the work for them is done; make it."""
    probe = folder / f"{LOCK_FILE}{PARTIAL_SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(PROBED))
        probe.unlink()
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            probe.unlink(missing_ok=True)
        raise _unwritable(folder, error) from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file beside its place, sync it and rename it: it is there whole or not at all.

    Raises:
        TrainingError: The file system does not take it; what it took is deleted.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        _delete_partial(partial)  # whatever it is, it is not written through
        with partial.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        refusal = _refusal(error, REFUSED) if isinstance(error, Exception) else None  # Ctrl-C is nobody's refusal
        if refusal is None:
            raise
        raise TrainingError(
            f"{path}: cannot be written: {_reason(refusal)}. What was there before is whole. Make room or make the "
            "folder writable, then try again; a training resumes with --resume last"
        ) from error


def _unwritable(folder: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{folder}: results cannot be written there: {_reason(error)}. Make the folder writable, or make room; or let "
        "results go elsewhere: --exp_dir DIR, or --set exp.exp_name=NAME"
    )


@contextmanager
def refusing_full_disk(folder: Path) -> Iterator[None]:
    """Raise TrainingError where loggers, which write as they like, find no room in the block."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        refusal = _refusal(error, NO_ROOM)
        if refusal is None:
            raise
        raise TrainingError(
            f"{refusal.filename or folder}: cannot be written: {_reason(refusal)}. Checkpoints are whole. Make room; "
            "then resume with --resume last"
        ) from error


def _refusal(error: BaseException | None, answers: Collection[int]) -> OSError | None:
    """The file system's answer that an exception is, or over which torch.save raised its own, a RuntimeError."""
    while type(error) is RuntimeError:
        error = error.__context__
    return error if isinstance(error, OSError) and error.errno in answers else None


def _delete_partial(partial: Path) -> None:
    """Delete what a killed run left of a file, where it left something. Raises OSError, with the cure for a folder."""
    try:
        partial.unlink(missing_ok=True)
    except OSError as error:
        if not partial.is_dir():
            raise
        reason = f"{partial.name} is a folder, expected a file that is being written; move it away"
        raise IsADirectoryError(errno.EISDIR, reason) from error


def _open(path: Path) -> IO[str]:
    """Open a lock file, made where it is missing. Raises OSError where there is a link, a pipe or a folder instead."""
    return os.fdopen(open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "a+", encoding="utf-8")


def _release(lock: IO[str]) -> None:
    """Close a lock file, whose record is deleted first: it would name a process that has ended."""
    with suppress(OSError):
        lock.truncate(0)
    lock.close()


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
