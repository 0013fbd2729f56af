"""A server on loopback that answers as Google's: conditions are generations, and what is gone cannot be deleted."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest
import xxhash

from shardwriter.storage import objects


@dataclass
class GoogleServer:
    """What runs.

    Attributes:
        content: Objects of the bucket, with their generations.
    """

    content: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    generations: "count[int]" = field(default_factory=lambda: count(1))
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: GoogleServer

    def do_PUT(self) -> None:
        body, condition = (
            self.rfile.read(int(self.headers["Content-Length"])),
            self.headers["x-goog-if-generation-match"],
        )
        with self.state.lock:
            present = self.state.content.get(self.name, (b"", 0))[1]
            if condition is not None and int(condition) != present:
                self.answer(412)
                return
            self.state.content[self.name] = body, next(self.state.generations)
            self.answer(200)

    def do_GET(self) -> None:
        if self.name:
            self.answer(200 if self.name in self.state.content else 404, with_body=True)
            return
        prefix = parse_qs(urlsplit(self.path).query)["prefix"][0]
        found = [name for name in sorted(self.state.content) if name.startswith(prefix)]
        rows = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(self.tag(name))}</ETag><Size>{len(self.state.content[name][0])}</Size></Contents>"
            for name in found
            if "/" not in name.removeprefix(prefix)
        )
        listing = f"<?xml version='1.0'?><ListBucketResult>{rows}</ListBucketResult>".encode()
        self.respond(200, {}, listing)

    def do_HEAD(self) -> None:
        self.answer(200 if self.name in self.state.content else 404)

    def do_DELETE(self) -> None:
        self.answer(204 if self.state.content.pop(self.name, None) else 404)

    @property
    def name(self) -> str:
        return unquote(urlsplit(self.path).path).strip("/").partition("/")[2]

    def tag(self, name: str) -> str:
        return f'"{xxhash.xxh3_64_hexdigest(self.state.content[name][0])}"'

    def answer(self, status: int, *, with_body: bool = False) -> None:
        headers, body = {"Last-Modified": formatdate(usegmt=True)}, b""
        if self.name in self.state.content:
            body, generation = self.state.content[self.name]
            headers |= {"ETag": self.tag(self.name), "x-goog-generation": str(generation)}
        self.respond(status, headers, body if with_body or self.command == "HEAD" else b"")

    def respond(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def google_bucket(folder: Path) -> Iterator[GoogleServer]:
    """A server with an empty bucket, and an environment that leads gs:// URLs to it and puts caches below `folder`."""
    state = GoogleServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    account = {"gcs_base_url": url, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    (folder / "account.json").write_text(json.dumps(account))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOOGLE_SERVICE_ACCOUNT", str(folder / "account.json"))
        patch.setenv("AWS_ENDPOINT_URL", url)  # which also says that http will do
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(objects, "ATTEMPTS", 1)
        objects._connect.cache_clear()
        yield state
        objects._connect.cache_clear()
    server.shutdown()
    thread.join()
    server.server_close()
