"""An S3 server on this machine, made of moto, that fails requests and kills clients where a test wants it."""

import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import boto3
from moto.core.base_backend import BackendDict
from moto.moto_server.werkzeug_app import create_backend_app
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

BUCKET = "bucket"

Fault = Literal["500", "403", "cut", "drip", "hang", "close", "500 afterwards", "hang afterwards", "close afterwards"]
"""What happens to a request: an error, half of the answer, all of it a byte at a time and too slowly, none as long as
the server runs, or a closed connection.

Those `afterwards` carry the request out before, so that only its answer is lost.
"""
_STATUS = {"500": "500 Internal Server Error", "403": "403 Forbidden"}


@dataclass
class Rule:
    """Requests that fail: the next `times` of those whose method and path a test chooses."""

    chosen: Callable[[str, str], bool]
    fault: Fault
    times: int


@dataclass
class Kill:
    """A client that is lost at one of its writes.

    Attributes:
        pid: Process to kill; None lets the client live, and no further write of it reaches the server.
        at: Which write, counted from 0.
        is_carried_out: Whether the server carries that write out first.
        writes: Writes that came so far.
    """

    pid: int | None
    at: int
    is_carried_out: bool = False
    writes: int = 0


@dataclass
class S3Server:
    """A server that runs.

    Attributes:
        endpoint: Address of the server.
        requests: Method and path of each request that was answered or failed.
        rules: Which of the next requests fail.
        kill: Client to lose, if any.
        released: Set when requests that hang may end.
        lock: Held while what requests share is changed.
    """

    endpoint: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    kill: Kill | None = None
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def empty(self) -> None:
        """Make the bucket anew, and fail no request."""
        self.released.set()
        with self.lock:
            self.kill, self.released = None, threading.Event()
            self.rules.clear()
        BackendDict.reset()  # moto keeps buckets by process
        self._client.create_bucket(Bucket=BUCKET)
        self.requests.clear()

    def fail(self, method: str, ending: str, fault: Fault, times: int = 1) -> None:
        """Let the next requests of a method fail whose path ends as the regular expression `ending` says."""
        pattern = re.compile(f"(?:{ending})$")
        self.rules.append(Rule(lambda verb, path: verb == method and pattern.search(path) is not None, fault, times))

    def names(self, prefix: str) -> list[str]:
        """List the objects below a prefix."""
        found = self._client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", [])
        return sorted(item["Key"].removeprefix(f"{prefix}/") for item in found)

    def read(self, name: str) -> bytes:
        """Read an object."""
        body: bytes = self._client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        return body

    def write(self, name: str, content: bytes) -> None:
        """Put an object."""
        self._client.put_object(Bucket=BUCKET, Key=name, Body=content)

    def delete(self, name: str) -> None:
        """Delete an object."""
        self._client.delete_object(Bucket=BUCKET, Key=name)

    @cached_property
    def _client(self) -> Any:
        keys = {"aws_access_key_id": "testing-id", "aws_secret_access_key": "testing-secret"}
        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **keys)

    def count_write(self, method: str) -> int | None:
        """Count a request of the client to lose. Returns its number among the writes, None where it is no write."""
        with self.lock:
            if self.kill is None or method not in ("PUT", "POST", "DELETE"):
                return None
            self.kill.writes += 1
            return self.kill.writes - 1

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Note a request. Returns how it fails, None where it is answered."""
        with self.lock:
            self.requests.append((method, path))
        for rule in [rule for rule in self.rules if rule.times]:
            if rule.chosen(method, path):  # without the lock, since it may ask the server for something
                with self.lock:
                    rule.times -= 1
                return rule.fault
        return None


class _Failing:
    """Application of the server: moto's, with faults before it.

    It answers one request at a time, so that conditional writes do not overlap.
    """

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self._inner = create_backend_app("s3")  # moto's dispatcher lists its own folders at each request
        self._one_at_a_time = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        number, kill = self.server.count_write(environ["REQUEST_METHOD"]), self.server.kill
        if number is not None and kill is not None and number >= kill.at:
            if number == kill.at:
                if kill.is_carried_out:
                    self._answer(environ, _ignore)
                if kill.pid is not None:
                    os.kill(kill.pid, signal.SIGKILL)
            raise _closed(environ)
        fault = self.server.take_fault(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        if fault is None:
            return [self._answer(environ, start_response)]
        if fault == "cut":
            return self._cut(environ, start_response)
        if fault == "drip":
            return self._drip(environ, start_response)
        kind, _, afterwards = fault.partition(" ")
        if afterwards:
            self._answer(environ, _ignore)
        if kind == "hang":
            self.server.released.wait()
        if kind in _STATUS:
            start_response(_STATUS[kind], [("Content-Length", "0")])
            return [b""]
        raise _closed(environ)

    def _answer(self, environ: dict[str, Any], start_response: Any) -> bytes:
        with self._one_at_a_time:
            return b"".join(self._inner(environ, start_response))

    def _cut(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        body = self._answer(environ, start_response)
        yield body[: len(body) // 2]
        raise _closed(environ)

    def _drip(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        body = self._answer(environ, start_response)
        for position in range(len(body)):
            yield body[position : position + 1]
            if self.server.released.wait(0.05):
                return


def _ignore(*_: object) -> None:
    pass


def _closed(environ: dict[str, Any]) -> ConnectionResetError:
    """Close the connection of a request. Raise what this returns, to end the request in the server."""
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return ConnectionResetError()


class _Quiet(WSGIRequestHandler):
    """Log nothing."""

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run a server, whose `empty` makes the bucket."""
    state = S3Server()
    server: BaseWSGIServer = make_server("127.0.0.1", 0, _Failing(state), threaded=True, request_handler=_Quiet)
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
