"""Real servers for tests of remote shards: a web server that fails on command, and S3 (moto)."""

from __future__ import annotations

import http.client
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from patience import patience


class FaultyServer:
    """Serves the files of a folder over HTTP, with ranges and ETags.

    Each request for a payload consumes the first of ``faults`` whose name it ends with: ``(name,
        fault, value)``.

    - ``drop``: send ``value`` bytes of the body, then reset the connection; ``cut``: then close it
      in order;
    - ``stall``: send ``value`` bytes, then nothing until the test ends;
    - ``slow``: send ``value`` bytes, set ``reached``, then wait for ``go_on``; ``hold``: as that,
      and close instead of sending the rest;
    - ``status``: answer with this status and ``Retry-After: 0``; ``refuse``: close without an
      answer;
    - ``corrupt``: flip a bit of byte ``value`` of the file; ``swap``: send ``value`` (bytes) as the
      file;
    - ``length``: claim this many bytes only; ``encode``: claim a Content-Encoding;
    - ``chunked``: do not send the size;
    - ``less``: answer a range with its first ``value`` bytes, and say so; ``shifted``: with the
      range that begins ``value`` bytes later, and say so; ``foreign``: with those bytes, and claim
      that they are what was asked for.

    Attributes:
        ranges: whether Range requests are heeded.
        sent: bytes of bodies by file name.
        token: what the Authorization header must be, if not empty.
        requests: (file name, Range header or "") in the order they came; before S3: method and
            path instead of the name.
    """

    def __init__(self, folder: Path, upstream: str = "") -> None:
        self.folder, self.upstream = folder, upstream
        self.faults: deque[tuple[str, str, Any]] = deque()
        self.always: dict[str, tuple[str, Any]] = {}
        self.ranges, self.token = True, ""
        self.requests: list[tuple[str, str]] = []
        self.sent: Counter[str] = Counter()
        self.reached, self.go_on, self._over = (
            threading.Event(),
            threading.Event(),
            threading.Event(),
        )
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"faulty": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}
        )
        self._thread.start()

    def next_fault(self, name: str) -> tuple[str, Any]:
        with self._lock:
            for fault in self.faults:
                if name.endswith(fault[0]):
                    self.faults.remove(fault)
                    return fault[1], fault[2]
        return self.always.get(name, ("", None))

    def counts(self) -> Counter[str]:
        """Requests by file name."""
        return Counter(name for name, _ in self.requests)

    def close(self) -> None:
        self._over.set()
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits until its head is confirmed
    faulty: FaultyServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.faulty.upstream:
            self._forward()
            return
        faulty = self.faulty
        name = unquote(self.path.rpartition("/")[2])
        wanted = self.headers.get("Range", "")
        faulty.requests.append((name, wanted))
        fault, value = faulty.next_fault(name)
        if faulty.token and self.headers.get("Authorization") != faulty.token:
            fault, value = "status", 401
        if fault == "refuse":
            self.close_connection = True
            return
        if fault == "status":
            self._answer(value, {"Retry-After": "0", "Content-Length": "0"})
            return
        path = faulty.folder / unquote(self.path).lstrip("/")
        if not path.is_file():
            self._answer(404, {"Content-Length": "0"})
            return
        data = bytearray(path.read_bytes() if fault != "swap" else value)
        if fault == "corrupt":
            data[value] ^= 1
        headers = {"ETag": f'"{hash(bytes(data)):x}"'}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted) if faulty.ranges else None
        first, end = 0, len(data)
        if match:
            first, end = int(match[1]), min(int(match[2] or end) + 1, end)
            if first >= end:
                self._answer(416, {"Content-Range": f"bytes */{end}", "Content-Length": "0"})
                return
            end = first + value if fault == "less" else end
            first += value if fault == "shifted" else 0
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
        moved = value if fault == "foreign" else 0
        body = bytes(data[first + moved : end + moved])
        headers["Content-Length"] = str(value if fault == "length" else len(body))
        if fault == "encode":
            headers["Content-Encoding"] = "gzip"
        if fault == "chunked":
            del headers["Content-Length"]
            headers["Connection"] = "close"
            self.close_connection = True
        self._answer(206 if match else 200, headers)
        with faulty._lock:
            faulty.sent[name] += len(body)
        if fault in ("drop", "cut", "stall", "slow", "hold"):
            self.wfile.write(body[:value])
            self.wfile.flush()
            self._interrupt(fault, body[value:])
        else:
            self.wfile.write(body[:value] if fault == "length" else body)

    def do_HEAD(self) -> None:
        self._forward()

    def _forward(self) -> None:
        """Pass an S3 request on; ``status`` takes (status, S3's error code), ``cut`` is of
        bodies.
        """
        path = self.path.partition("?")[0]
        self.faulty.requests.append((f"{self.command} {path}", self.headers.get("Range", "")))
        fault, value = self.faulty.next_fault(path.rpartition("/")[2])
        if fault == "status":
            body = f"<Error><Code>{value[1]}</Code><Message>as asked</Message></Error>".encode()
            self._answer(
                value[0], {"Content-Length": str(len(body)), "Content-Type": "application/xml"}
            )
            if self.command == "GET":
                self.wfile.write(body)
            return
        upstream = http.client.HTTPConnection(self.faulty.upstream.partition("://")[2])
        upstream.request(self.command, self.path, headers=dict(self.headers))
        answer = upstream.getresponse()
        body = answer.read()
        upstream.close()
        kept = {
            name: content
            for name, content in answer.getheaders()
            if name.lower() not in ("connection", "server")
        }
        self._answer(answer.status, kept)
        self.wfile.write(body if fault != "cut" else body[:value])
        if fault == "cut":
            self.close_connection = True

    def _interrupt(self, fault: str, rest: bytes) -> None:
        if fault in ("slow", "hold"):
            self.faulty.reached.set()
            self.faulty.go_on.wait()
        if fault == "slow":
            try:
                self.wfile.write(rest)
            except ConnectionError:
                self.close_connection = True
            return
        self.close_connection = True
        if fault == "stall":
            self.faulty._over.wait()
        if fault == "drop":  # closing with nothing to linger for sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def handle(self) -> None:
        try:
            super().handle()
        except (ConnectionError, ValueError):  # the test's client or a fault has closed it
            self.close_connection = True

    def finish(self) -> None:
        with suppress(ConnectionError, ValueError):
            super().finish()


@contextmanager
def serve(folder: Path) -> Iterator[FaultyServer]:
    server = FaultyServer(folder)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def s3_proxy(endpoint: str) -> Iterator[FaultyServer]:
    """Stands before an S3 endpoint and fails on command."""
    server = FaultyServer(Path(), upstream=endpoint)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port that the system gives to nobody else meanwhile; whoever binds it by its number may,
    and listen.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@contextmanager
def s3_server() -> Iterator[str]:
    """URL of an S3 endpoint in a process of its own."""
    with reserved_port() as port:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
        )
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(int(patience(10) / 0.05)):
                assert process.poll() is None, "moto ended"
                try:
                    urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
                    break
                except urllib.error.HTTPError:
                    break
                except OSError:
                    time.sleep(0.05)
            else:
                raise AssertionError("moto does not answer")
            yield url
        finally:
            process.terminate()
            process.wait()
