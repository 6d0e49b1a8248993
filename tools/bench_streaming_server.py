"""A web server that counts what it sends, for `bench_streaming`; standard library only.

As a program, ``python bench_streaming_server.py FOLDER PORT COUNTS SOURCE``: serves the files of
``FOLDER`` with ranges (which is also all that a client of S3 needs to read objects). ``COUNTS`` is
a file of four int64 that the server maps into its memory, so that they outlive it when it is
killed. ``SOURCE`` is JSON of `Source`.
"""

from __future__ import annotations

import json
import mmap
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

_CHUNK = 64 << 10
_COUNTS = struct.Struct("<4q")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Counts(NamedTuple):
    """Requests and bytes of bodies, of shards and of everything else."""

    requests: int = 0
    bytes: int = 0
    other_requests: int = 0
    other_bytes: int = 0

    def since(self, before: Counts) -> Counts:
        """What came after ``before``."""
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))


@dataclass(frozen=True, kw_only=True)
class Source:
    """How slow and how unsteady a server is.

    Attributes:
        rate: bytes per second over all connections; 0: as fast as it can.
        latency_s: before each answer.
        spike_s: for so long, at the end of every ``spike_every_s``, nothing is sent.
    """

    rate: float = 0.0
    latency_s: float = 0.0
    spike_s: float = 0.0
    spike_every_s: float = 60.0


class Server:
    """One server in a process of its own, at a port that stays its own while the process is dead.

    Attributes:
        address: ``127.0.0.1:PORT``.
    """

    def __init__(self, folder: Path, counts: Path, source: Source | None = None) -> None:
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        port = self._reserved.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._counts = counts
        counts.write_bytes(bytes(_COUNTS.size))
        shape = json.dumps(asdict(source or Source()))
        self._command = [sys.executable, __file__, str(folder), str(port), str(counts), shape]
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Start the process; it serves when this returns."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None and self._process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        """End the process in the middle of whatever it sends; connections are refused then."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End for good."""
        self.kill()
        self._reserved.close()

    def counts(self) -> Counts:
        """So far, over all processes of this server."""
        return Counts(*_COUNTS.unpack(self._counts.read_bytes()))


class _Counter:
    def __init__(self, path: Path) -> None:
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), _COUNTS.size)
        self._guard = threading.Lock()

    def add(self, path: str, *, requests: int = 0, size: int = 0) -> None:
        with self._guard:
            counts = list(_COUNTS.unpack(self._map[:]))
            first = 0 if path.endswith((".tar", ".mds")) else 2
            counts[first] += requests
            counts[first + 1] += size
            self._map[:] = _COUNTS.pack(*counts)


class _Gate:
    """Lets bytes through as `Source` has it: in one row, whoever sends them."""

    def __init__(self, source: Source) -> None:
        self._source, self._guard = source, threading.Lock()
        self._began = self._free = time.monotonic()

    def answer(self) -> None:
        """Wait before an answer."""
        time.sleep(self._source.latency_s)

    def send(self, size: int) -> None:
        """Wait until ``size`` more bytes may be sent."""
        if not (self._source.rate or self._source.spike_s):
            return
        with self._guard:
            at = self._after_spike(max(self._free, time.monotonic()))
            self._free = at + (size / self._source.rate if self._source.rate else 0.0)
        time.sleep(max(0.0, at - time.monotonic()))

    def _after_spike(self, at: float) -> float:
        source = self._source
        if not source.spike_s:
            return at
        inside = (at - self._began) % source.spike_every_s
        return (
            at
            if inside < source.spike_every_s - source.spike_s
            else (at + source.spike_every_s - inside)
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    counter: _Counter
    gate: _Gate

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, body: bool) -> None:
        name = unquote(self.path.partition("?")[0])
        path = self.folder / name.lstrip("/")
        self.counter.add(name, requests=1)
        self.gate.answer()
        if ".." in path.parts or not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        first = int(match[1]) if match else 0
        last = min(int(match[2]), size - 1) if match and match[2] else size - 1
        self.send_response(206 if match else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{size:x}-{path.stat().st_mtime_ns:x}"')
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        if match:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if body:
            self._send(path, name, first, last + 1)

    def _send(self, path: Path, name: str, start: int, end: int) -> None:
        with open(path, "rb") as file:
            file.seek(start)
            while start < end:
                data = file.read(min(_CHUNK, end - start))
                self.gate.send(len(data))
                self.counter.add(name, size=len(data))  # first: who has it may ask for the counts
                self.wfile.write(data)
                start += len(data)

    def handle(self) -> None:
        with suppress(ConnectionError):  # the client has what it wants
            super().handle()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 512


def main() -> None:
    folder, port, counts, source = sys.argv[1:]
    parts = {
        "folder": Path(folder),
        "counter": _Counter(Path(counts)),
        "gate": _Gate(Source(**json.loads(source))),
    }
    server = _HttpServer(("127.0.0.1", int(port)), type("Handler", (_Handler,), parts))
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
