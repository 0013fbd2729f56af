"""A web server on this machine, which serves a folder."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class _Quiet(SimpleHTTPRequestHandler):
    """Serve a folder. A path below /ftp or /file is redirected there. NAME?cut=BYTES breaks off after so many, and
    NAME?chunk=BYTES sends one chunk of so many and no end.
    """

    protocol_version = "HTTP/1.1"  # which has chunks

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path.startswith(("/ftp", "/file")):
            self.send_response(302)
            self.send_header("Location", f"{path.split('/')[1]}://localhost/x.tar")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif query.startswith("cut="):
            content = Path(self.translate_path(path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: int(query.removeprefix("cut="))])
            self.close_connection = True
        elif query.startswith("chunk="):
            content = Path(self.translate_path(path)).read_bytes()[: int(query.removeprefix("chunk="))]
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(content), content))
            self.close_connection = True
        else:
            super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    """Says nothing of clients that close before the end, as those do that have seen a fault."""

    def handle_error(self, *_: Any) -> None:
        pass


@contextmanager
def dripping(begin: bytes, drop: bytes, seconds: float) -> Iterator[str]:
    """Serve one request: `begin`, then `drop` every hundredth of a second for so long. Gives the address of a tar."""
    ended = threading.Event()

    def serve() -> None:
        with suppress(OSError), listening.accept()[0] as connection:
            connection.recv(1 << 16)
            connection.sendall(begin)
            for _ in range(int(seconds * 100)):
                if ended.wait(0.01):
                    return
                connection.sendall(drop)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/x.tar"
        finally:
            ended.set()
            thread.join()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder. Gives the address before the names of its files."""
    server = _Server(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
