"""What it costs to train on shards that lie on a server: transfers, requests, waits, starts.

    python tools/bench_streaming.py --mosaic-python OTHER_ENVIRONMENT/bin/python

Parts, in this order; ``--parts`` chooses some:

  simulation   how often all machines together fetch a set of two million samples in 200 shards,
               with caches of 2, 10 and 50 %, on 1, 8 and 64 machines, and on 8, then 6, then 8
  http         the same over real HTTP on loopback, one and two machines, every byte counted,
               beside mosaicml-streaming and the webdataset library over the same samples
  throttled    a source of 1.2 and of 0.8 times the rate that training needs, with latency and
               silences, and one that is dead for 20 s: how long steps wait
  start        the first step on a fresh machine

Other libraries run in interpreters of their own: one that has mosaicml-streaming, and this one for
webdataset unless another is named. Nothing leaves the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import bench_streaming_http as http
import bench_streaming_simulation as simulation
import bench_streaming_throttled as throttled

from mmscale.errors import UserError

PARTS = ("simulation", "http", "throttled", "start")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all of them"
    )
    parser.add_argument(
        "--samples", type=int, metavar="N", help="of every part's set (default: each part's own)"
    )
    parser.add_argument(
        "--mosaic-python", default="", metavar="PYTHON", help="an interpreter that has it"
    )
    parser.add_argument(
        "--webdataset-python", default=sys.executable, metavar="PYTHON", help="default: this one"
    )
    parser.add_argument(
        "--folder", type=Path, help="for several GB (default: a temporary one, removed again)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one machine-readable result on stdout"
    )
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="mmscale-bench-", dir=arguments.folder) as folder:
            result = bench(arguments, Path(folder))
    except UserError as error:
        print(f"bench_streaming: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if arguments.json:
        print(json.dumps(result))


def bench(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The parts that were asked for, as plain data; tables are printed as they are done."""

    def say(text: str) -> None:
        print(text + "\n", file=sys.stderr if arguments.json else sys.stdout, flush=True)

    result: dict[str, Any] = {}
    more = {"samples": arguments.samples} if arguments.samples else {}
    if "simulation" in arguments.parts:
        simulated = list(simulation.simulate(folder / "index", arguments.mosaic_python, **more))
        say(simulation.table(simulated))
        result["simulation"] = [asdict(row) for row in simulated]
    if "http" in arguments.parts:
        trial = http.Trial(
            folder, http.Amounts(**more), arguments.mosaic_python, arguments.webdataset_python
        )
        fetched = list(trial.run())
        say(http.table(fetched))
        result["http"] = [asdict(row) for row in fetched]
    if {"throttled", "start"} & set(arguments.parts):
        sources = throttled.SlowSources(folder, **more)
        if "start" in arguments.parts:
            started = sources.fresh_start()
            say(throttled.start_lines(started))
            result["start"] = asdict(started)
        if "throttled" in arguments.parts:
            waited = [
                sources.throttled(1.2, spikes=True),
                sources.throttled(0.8, spikes=False),
                sources.dying(),
            ]
            say(throttled.table(waited))
            result["throttled"] = [asdict(row) for row in waited]
    return result


if __name__ == "__main__":
    main()
