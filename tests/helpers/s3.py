"""An S3 server on loopback, moto's, that can be told to fail, and to kill its clients."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

BUCKET = "bucket"

Fault = Literal["500", "cut", "hang", "close"]


@dataclass
class Rule:
    """Requests that fail: the next `times` whose method and path a test chose."""

    chosen: Callable[[str, str], bool]
    fault: Fault
    times: int


@dataclass
class Kill:
    """A process that dies at a request that writes: the `at`-th, which is carried out before, or is not."""

    pid: int
    at: int
    is_carried_out: bool
    writes: int = 0


@dataclass
class S3Server:
    """What runs.

    Attributes:
        endpoint: Its address.
        requests: Method and path of all that were answered or failed.
        kill: Whom to kill, if anybody.
    """

    endpoint: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    kill: Kill | None = None
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, method: str, ending: str, fault: Fault, times: int = 1) -> None:
        """Let the next requests of a method fail whose path ends so."""
        self.rules.append(Rule(lambda verb, path: verb == method and path.endswith(ending), fault, times))

    def names(self, prefix: str) -> list[str]:
        """Objects below a prefix."""
        client = boto3.client("s3", endpoint_url=self.endpoint)
        found = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", [])
        return sorted(item["Key"].removeprefix(f"{prefix}/") for item in found)

    def read(self, name: str) -> bytes:
        """An object."""
        body: bytes = boto3.client("s3", endpoint_url=self.endpoint).get_object(Bucket=BUCKET, Key=name)["Body"].read()
        return body

    def write(self, name: str, content: bytes) -> None:
        """Put an object."""
        boto3.client("s3", endpoint_url=self.endpoint).put_object(Bucket=BUCKET, Key=name, Body=content)

    def delete(self, name: str) -> None:
        """Delete an object."""
        boto3.client("s3", endpoint_url=self.endpoint).delete_object(Bucket=BUCKET, Key=name)

    def count_write(self, method: str) -> int | None:
        """Number of a request that writes and comes from whom is to be killed."""
        with self.lock:
            if self.kill is None or method not in ("PUT", "POST", "DELETE"):
                return None
            self.kill.writes += 1
            return self.kill.writes - 1

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The fault of a request that comes in."""
        with self.lock:
            self.requests.append((method, path))
            for rule in self.rules:
                if rule.times and rule.chosen(method, path):
                    rule.times -= 1
                    return rule.fault
        return None


class _Failing:
    """Stands before moto's application."""

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self.inner = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        number, kill = self.server.count_write(environ["REQUEST_METHOD"]), self.server.kill
        if number is not None and kill is not None and number >= kill.at:
            if number == kill.at:
                if kill.is_carried_out:
                    b"".join(self.inner(environ, lambda *_: None))
                os.kill(kill.pid, signal.SIGKILL)
            raise ConnectionResetError
        fault = self.server.take_fault(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        if fault is None:
            answer: Iterable[bytes] = self.inner(environ, start_response)
            return answer
        if fault == "500":
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        if fault == "hang":
            self.server.released.wait()
        if fault == "cut":
            return self._cut(environ, start_response)
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError

    def _cut(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        body = b"".join(self.inner(environ, start_response))
        yield body[: len(body) // 2]
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError


class _Quiet(WSGIRequestHandler):
    """Logs nothing."""

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run a server with an empty bucket."""
    state = S3Server()
    server: BaseWSGIServer = make_server("127.0.0.1", 0, _Failing(state), threaded=True, request_handler=_Quiet)  # type: ignore[arg-type]
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
