"""A server on loopback with one file, which can behave as servers and connections do when they fail."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from stable_sam.bases import PublishedFile


class FileServer(ThreadingHTTPServer):
    """Serves `content` at every address. Tests change the attributes between requests."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.status = 200
        self.ranges = True
        """Whether requests for a part get the part alone."""
        self.states_length = True
        self.cut_after: int | None = None
        """Bytes of an answer after which the connection is closed."""
        self.starts: list[int] = []
        """First byte of the part that each request asked for."""

    @property
    def url(self) -> str:
        """Address of the file."""
        return f"http://127.0.0.1:{self.server_port}/base.pth"

    def published(self, **other: object) -> PublishedFile:
        """The file as a base would name it, with the facts in `other` replaced."""
        facts = {"name": "base.pth", "url": self.url, "size": len(self.content)}
        sha256 = hashlib.sha256(self.content).hexdigest()
        return PublishedFile(**(facts | {"sha256": sha256} | other))  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        server = self.server
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        server.starts.append(start)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = start if server.ranges else 0
        part = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if server.states_length:
            self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body:
            self.wfile.write(part[: server.cut_after])

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(content: bytes) -> Iterator[FileServer]:
    """Run a server of `content` until the block ends."""
    with FileServer(content) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
