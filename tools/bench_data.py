"""How fast pictures and speech come out of the data pipeline, beside others, in one run on the same
shards.

    python tools/bench_data.py --open-clip-python OTHER_ENVIRONMENT/bin/python

Pictures: photographs of about 640 pixels with captions → random crops of 224 pixels and tokens.
Speech: clips of digits → log-mel spectrograms and tokens. Every side runs in a process of its own
and starts its own loader processes; they are measured in turn, round after round, and a ratio is
the median over the rounds, with the least and the most beside it. The files are in memory after the
first pass. Sides:

  mmscale       the pipeline that training runs, to packed batches; pictures as uint8
  float32       the same, with pictures in normalised float32, which training leaves to the device
  libjpeg       libjpeg-turbo alone: the decoding calls that mmscale makes, and nothing else
  webdataset    the webdataset library with Pillow, or with soundfile and the same spectrogram
  open_clip     open_clip's own training pipeline; needs an environment with open_clip_torch and
                torchvision
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench_data_shards import write_pictures, write_speech

from mmscale.errors import UserError

HERE = Path(__file__).resolve().parent
ROUNDS, WORKERS = 5, (1, 2)
PICTURE_SIDES = (
    "mmscale_pictures",
    "mmscale_float",
    "libjpeg_pictures",
    "webdataset_pictures",
    "open_clip",
)
SPEECH_SIDES = ("mmscale_speech", "webdataset_speech")


class Side:
    """One process, or a process a worker for sides that have no loader of their own."""

    def __init__(self, command: list[str], processes: int = 1) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        commands = [
            [*command, str(n), str(processes)] if processes > 1 else command
            for n in range(processes)
        ]
        self._processes = [
            subprocess.Popen(
                part,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            for part in commands
        ]
        self.versions, *_ = (self._answer(process) for process in self._processes)

    def measure(self, workers: int, warm_up: int, samples: int) -> dict[str, float]:
        """Samples, and seconds of sound, a second."""
        request = {
            "workers": workers,
            "warm_up": warm_up,
            "samples": samples // len(self._processes),
        }
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        answers = [self._answer(process) for process in self._processes]
        rate = sum(answer["samples"] / answer["seconds"] for answer in answers)
        return {
            "samples_s": rate,
            "sound": sum(answer["sound_s"] / answer["seconds"] for answer in answers),
        }

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.wait()

    @staticmethod
    def _answer(process: subprocess.Popen[str]) -> Any:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise UserError(f"{process.args!r}: ended early; run it alone to see why")
        return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("MMSCALE_DATA", HERE.parent.parent / "shared" / "data")
    parser.add_argument(
        "--data", type=Path, default=Path(data), help="folder of the published sets (MMSCALE_DATA)"
    )
    parser.add_argument(
        "--photographs", type=int, default=1020, metavar="N", help="samples to pack (default: 1020)"
    )
    parser.add_argument(
        "--clips", type=int, default=3000, metavar="N", help="clips to pack (default: 3000)"
    )
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, metavar="N", help=f"default: {ROUNDS}"
    )
    parser.add_argument(
        "--open-clip-python", metavar="PYTHON", help="an interpreter that has open_clip_torch 3.3"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one machine-readable result on stdout"
    )
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="mmscale-bench-") as folder:
            result = bench(arguments, Path(folder))
    except UserError as error:
        print(f"bench_data: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(json.dumps(result) if arguments.json else report(result))


def bench(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything, as plain data."""
    different = write_pictures(arguments.data / "captions", folder, arguments.photographs)
    clips = write_speech(arguments.data / "fsdd", folder, arguments.clips)
    amount = {
        "samples": arguments.photographs,
        "photographs": different,
        "clips": clips,
        "rounds": arguments.rounds,
    }
    rates: dict[str, dict[int, list[dict[str, float]]]] = {}
    versions: dict[str, str] = {}
    for names, samples in ((PICTURE_SIDES, arguments.photographs), (SPEECH_SIDES, clips)):
        for workers in WORKERS:
            sides = start_sides(names, workers, folder, arguments.open_clip_python)
            try:
                for _ in range(arguments.rounds):
                    for name, side in sides.items():
                        measured = side.measure(workers, max(1, samples // 8), samples)
                        rates.setdefault(name, {}).setdefault(workers, []).append(measured)
                for name, side in sides.items():
                    versions |= {
                        f"{name}: {package}": version for package, version in side.versions.items()
                    }
            finally:
                for side in sides.values():
                    side.close()
    return {
        "amount": amount,
        "rates": rates,
        "first_batch": first_batch(folder),
        "versions": versions,
    }


def start_sides(
    names: tuple[str, ...], workers: int, folder: Path, open_clip: str | None
) -> dict[str, Side]:
    """The processes of the named sides; without an interpreter for it, open_clip's is left out."""
    sides = {}
    for name in names:
        if name != "open_clip":
            command = [sys.executable, str(HERE / "bench_data_side.py"), name, str(folder)]
            sides[name] = Side(command, workers if name.startswith("libjpeg") else 1)
        elif open_clip:
            sides[name] = Side([open_clip, str(HERE / "bench_data_open_clip.py"), str(folder)])
    return sides


def first_batch(folder: Path) -> dict[str, dict[str, float]]:
    """Seconds from the start of a fresh process to its first batch, and of these those that torch
    takes to import.
    """
    first_batches = {}
    for workers in (0, 1):
        times = []
        for _ in range(3):
            command = [
                sys.executable,
                str(HERE / "bench_data_first_batch.py"),
                str(folder),
                str(workers),
            ]
            began = time.time()
            answer = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
            times.append((answer["at"] - began, answer["torch_s"]))
        first_batches[str(workers)] = {
            "seconds": median(t for t, _ in times),
            "torch_s": median(t for _, t in times),
        }
    return first_batches


def report(result: dict[str, Any]) -> str:
    """The result as a table."""
    amount, rates = result["amount"], result["rates"]
    lines = [
        f"pictures: {amount['samples']:,} samples, {amount['photographs']} different photographs; "
        f"speech: {amount['clips']:,} clips; {amount['rounds']} rounds, median (least to most)",
        "",
        f"{'':22}{'samples/s, 1 worker':>22}{'2 workers':>12}   mmscale is so many times as fast",
    ]
    for names in (PICTURE_SIDES, SPEECH_SIDES):
        for name in names:
            if name not in rates:
                lines.append(f"{name:22}{'not measured':>22}   give --open-clip-python")
                continue
            single, double = (
                median(rate["samples_s"] for rate in rates[name][workers]) for workers in WORKERS
            )
            ratios = (
                ""
                if name == names[0]
                else "   "
                + ", ".join(
                    _ratio(rates[names[0]][workers], rates[name][workers]) for workers in WORKERS
                )
            )
            lines.append(f"{name:22}{single:>22.0f}{double:>12.0f}{ratios}")
    hours = [
        median(rate["sound"] for rate in rates[SPEECH_SIDES[0]][workers]) for workers in WORKERS
    ]
    lines += ["", f"speech: {hours[0]:,.0f} and {hours[1]:,.0f} seconds of sound a second"]
    for workers, times in result["first_batch"].items():
        lines.append(
            f"first batch of a fresh process, {workers} workers: {times['seconds']:.2f} s, "
            f"{times['torch_s']:.2f} s of it import torch"
        )
    seen = sorted(
        {entry.partition(": ")[2] + " " + version for entry, version in result["versions"].items()}
    )
    return "\n".join([*lines, "versions: " + ", ".join(seen)])


def _ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> str:
    ratios = [
        our["samples_s"] / their["samples_s"] for our, their in zip(ours, theirs, strict=True)
    ]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
