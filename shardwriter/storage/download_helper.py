"""Downloads for a process that was forked: obstore's threads are not inherited, so a process of its own fetches.

The helper is started at the first download, answers one request after another, and ends with the process that started
it, whose end closes its input.
"""

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from iianet.errors import StoreError, UnreachableError
from shardwriter.storage.storage import Listed

LONGEST_SECONDS = 86_400.0
"""Longest wait for a download; the server has shorter ones."""
_has_forked = False
_lock = threading.Lock()
_process: "subprocess.Popen[bytes] | None" = None


def _start_anew() -> None:
    """A helper serves the process that started it; and another thread may have held the lock at the fork."""
    global _has_forked, _lock, _process
    _has_forked, _lock, _process = True, threading.Lock(), None


os.register_at_fork(after_in_child=_start_anew)


def has_forked() -> bool:
    """Whether this process was forked from one that has loaded this module."""
    return _has_forked


def download_in_helper(url: str, name: str, path: Path, *, size: int | None, digest: str | None) -> Listed:
    """See `Objects.download`."""
    request = {"url": url, "name": name, "path": str(path), "size": size, "digest": digest}
    with _lock:
        process = _started()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], LONGEST_SECONDS)[0]:  # a request has a shorter limit
                process.kill()
            answer = process.stdout.readline()
        except OSError as error:
            raise UnreachableError(
                f"{url}/{name}: the process that downloads has ended ({error}); start again"
            ) from error
    if not answer:
        raise UnreachableError(f"{url}/{name}: the process that downloads has ended; its message is above. Start again")
    outcome: dict[str, Any] = json.loads(answer)
    if "gone" in outcome:
        raise FileNotFoundError(outcome["gone"])
    if "unreached" in outcome:
        raise UnreachableError(outcome["unreached"])
    if "error" in outcome:
        raise StoreError(outcome["error"])
    return Listed(*outcome["found"])


def _started() -> "subprocess.Popen[bytes]":
    global _process
    if _process is None or _process.poll() is not None:
        command = [sys.executable, "-c", "from shardwriter.storage.objects import serve_downloads; serve_downloads()"]
        paths = os.pathsep.join(path for path in sys.path if path)
        _process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # signals of a terminal are for the process that started it
        )
    return _process


def serve(download: Callable[..., Listed], requests: IO[Any] = sys.stdin, answers: IO[Any] = sys.stdout) -> None:
    """Answer requests until there are no more; `download` has the arguments of `download_in_helper`."""
    for line in requests:
        request = json.loads(line)
        outcome: dict[str, Any] = {}
        try:
            outcome["found"] = download(**{**request, "path": Path(request["path"])})
        except FileNotFoundError as error:
            outcome = {"gone": str(error)}
        except (UnreachableError, OSError) as error:
            outcome = {"unreached": str(error)}
        except StoreError as error:
            outcome = {"error": str(error)}
        answers.write(json.dumps(outcome) + "\n")
        answers.flush()
