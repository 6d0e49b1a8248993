"""Parts 2 and 3 of `bench_streaming`: whole epochs over real HTTP, every byte counted.

Each side reads the same samples, on one machine and on two, with caches of several sizes. A machine
is a process with a cache of its own, and a server of its own counts what it asks for. The sides
are mmscale, mosaicml-streaming, which keeps whole shards within a limit, and webdataset, which
keeps nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench_streaming_mosaic import Reading
from bench_streaming_run import StreamedRun
from bench_streaming_server import Counts, Server
from bench_streaming_shards import tokenizer_file, write_set
from bench_streaming_webdataset import WebReading

from mmscale.errors import UserError

HERE = Path(__file__).resolve().parent
EPOCHS = 2
# Small blocks and few groups at a time, as a set of this size needs them for the smallest cache:
# 4,096 blocks of 4 samples, of which 8 lanes hold 4 each.
SETTINGS = {"block": 4, "group_blocks": 4, "window_groups": 1, "lanes": 8}


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """Of the set that is read."""

    samples: int = 16_384
    sample_bytes: int = 20_000
    shards: int = 256
    caches: tuple[float, ...] = (0.02, 0.1, 0.5)  # shares of the set
    nodes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What one side asked for in `EPOCHS` epochs; ``times``: the set, an epoch, by all nodes."""

    side: str
    nodes: int
    cache: float
    times: float
    requests: int
    bytes: int
    problem: str = ""

    @property
    def requests_per_4mb(self) -> float:
        """Requests for every 4 * 10^6 bytes."""
        return self.requests * 4e6 / self.bytes if self.bytes else 0.0


class Trial:
    """The set, its forms for every side, and the runs over it, in ``folder``."""

    def __init__(self, folder: Path, amounts: Amounts, mosaic: str, webdataset: str) -> None:
        self._folder, self._amounts = folder, amounts
        self._mosaic, self._webdataset = mosaic, webdataset
        self._web = folder / "web"
        write_set(
            self._web / "tars", samples=amounts.samples, sample_bytes=amounts.sample_bytes,
            shards=amounts.shards,
        )  # fmt: skip
        self.bytes = sum(path.stat().st_size for path in self._tars())
        if mosaic:
            program = str(HERE / "bench_streaming_mosaic.py")
            size = str(self.bytes // amounts.shards)
            places = [str(self._web / "tars"), str(self._web / "mds"), size]
            _finish([mosaic, program, "write", *places])

    def run(self) -> Iterator[Fetched]:
        """Every side in turn."""
        for nodes in self._amounts.nodes:
            for cache in self._amounts.caches:
                yield self._ours(nodes, cache)
                if self._mosaic:
                    yield self._theirs("mosaic, tuned", nodes, cache, self._tuned(cache))
            if self._mosaic:  # as it comes it takes minutes, and hours with less
                yield self._theirs("mosaic", nodes, max(self._amounts.caches), 0)
            if self._webdataset:
                yield self._plain(nodes)

    def _ours(self, nodes: int, cache: float) -> Fetched:
        with self._machines(nodes) as servers:
            runs = [
                StreamedRun(
                    shards=f"http://{server.address}/tars/",
                    tokenizer=str(tokenizer_file(self._web / "tars")),
                    cache=str(self._folder / f"cache-{nodes}-{cache}-{node}"),
                    max_gb=cache * self.bytes / 1e9, node=node, nodes=nodes, epochs=EPOCHS,
                    settings=SETTINGS,
                )
                for node, server in enumerate(servers)
            ]  # fmt: skip
            program = [sys.executable, str(HERE / "bench_streaming_run.py")]
            problem = _finish_all([[*program, json.dumps(asdict(run))] for run in runs])
            return self._fetched("mmscale", nodes, cache, servers, problem, self.bytes)

    def _tuned(self, cache: float) -> int:
        """Samples that mosaic can shuffle together within half of its cache."""
        return max(1, int(cache * self._amounts.samples / 2))

    def _theirs(self, name: str, nodes: int, cache: float, block: int) -> Fetched:
        size = sum(path.stat().st_size for path in (self._web / "mds").glob("*.mds"))
        with self._machines(nodes) as servers:
            problem = ""
            for node, server in enumerate(servers):  # in turn, see `bench_streaming_mosaic.read`
                reading = Reading(
                    remote="s3://mds", endpoint=server.address, canonical=nodes, node=node,
                    local=str(self._folder / f"{name}-{nodes}-{cache}-{node}"), nodes=nodes,
                    cache_bytes=int(cache * size), epochs=EPOCHS, block=block,
                )  # fmt: skip
                program = [self._mosaic, str(HERE / "bench_streaming_mosaic.py"), "read"]
                problem = problem or _finish_all([[*program, json.dumps(asdict(reading))]])
            return self._fetched(name, nodes, cache, servers, problem, size)

    def _plain(self, nodes: int) -> Fetched:
        with self._machines(nodes) as servers:
            problem = ""
            for node, server in enumerate(servers):
                urls = [f"http://{server.address}/tars/{path.name}" for path in self._tars()]
                reading = WebReading(urls=urls, node=node, nodes=nodes, epochs=EPOCHS)
                program = [self._webdataset, str(HERE / "bench_streaming_webdataset.py")]
                problem = problem or _finish_all([[*program, json.dumps(asdict(reading))]])
            return self._fetched("webdataset", nodes, 0.0, servers, problem, self.bytes)

    def _fetched(
        self, side: str, nodes: int, cache: float, servers: list[Server], problem: str, size: int
    ) -> Fetched:
        total = Counts(
            *(sum(column) for column in zip(*(s.counts() for s in servers), strict=True))
        )
        return Fetched(
            side=side, nodes=nodes, cache=cache, times=total.bytes / size / EPOCHS,
            requests=total.requests, bytes=total.bytes, problem=problem,
        )  # fmt: skip

    def _tars(self) -> list[Path]:
        return sorted((self._web / "tars").glob("*.tar"))

    @contextmanager
    def _machines(self, nodes: int) -> Iterator[list[Server]]:
        servers = [Server(self._web, self._folder / f"counts-{node}") for node in range(nodes)]
        try:
            yield servers
        finally:
            for server in servers:
                server.close()


def table(results: list[Fetched]) -> str:
    """For people."""
    lines = ["| side | machines | cache | times the set, an epoch | requests | per 4 MB |"]
    lines.append("|---|---|---|---|---|---|")
    for row in results:
        cache = f"{row.cache:.0%}" if row.cache else "none"
        what = row.problem or f"{row.times:.3f} | {row.requests:,} | {row.requests_per_4mb:.2f}"
        lines.append(f"| {row.side} | {row.nodes} | {cache} | {what} |")
    return "\n".join(lines)


def facts(results: list[Fetched]) -> list[dict[str, Any]]:
    """For machines."""
    return [asdict(row) for row in results]


def _finish(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command[:2])}: {_last(done.stderr)}")


def _finish_all(commands: list[list[str]]) -> str:
    """Run them side by side; what the first that failed says last."""
    processes = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    said = [process.communicate()[1] for process in processes]
    failed = [text for process, text in zip(processes, said, strict=True) if process.returncode]
    return _last(failed[0]) if failed else ""


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else "ended without a word"
