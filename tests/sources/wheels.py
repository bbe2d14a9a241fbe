"""Wheels made for a test, and a package index that can stall in the middle of one."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DATA = b'{"input": "a", "ideal": "1"}\n' * 2000
MEMBER = "tiny/data/rows.jsonl"
SHA256 = hashlib.sha256(DATA).hexdigest()


def build(folder: Path, *, extra: dict[zipfile.ZipInfo | str, bytes] | None = None, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    """The wheel tiny 1.0 with `MEMBER`, and whatever else a test wants in it."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", compression) as archive:
        archive.writestr("tiny/__init__.py", "raise SystemExit('a source must never be run')\n")
        archive.writestr(MEMBER, DATA)
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\nRequires-Python: >=99\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    return wheel


class Index:
    """A simple package index (PEP 503) that serves one wheel."""

    def __init__(self, wheel: Path) -> None:
        self.wheel = wheel
        self.status = 200
        self.stall = False
        self.stalled = threading.Event()  # half of the wheel is out
        self.go_on = threading.Event()
        self.downloads = 0
        self.url = ""


@contextmanager
def index(wheel: Path) -> Iterator[Index]:
    """Serve `wheel` on the loopback."""
    state = Index(wheel)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Nothing on the terminal."""

        def do_GET(self) -> None:
            if state.status != 200:
                self.send_error(state.status)
            elif self.path.endswith(".whl"):
                self._wheel(state.wheel.read_bytes())
            elif self.path.rstrip("/").endswith("/tiny"):
                self._send(f'<a href="/files/{wheel.name}">{wheel.name}</a>'.encode())
            else:
                self.send_error(404)

        def _wheel(self, body: bytes) -> None:
            state.downloads += 1
            if not state.stall:
                self._send(body)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            state.stalled.set()
            state.go_on.wait(30)

        def _send(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}/simple"
    try:
        yield state
    finally:
        state.go_on.set()
        server.shutdown()
        server.server_close()
