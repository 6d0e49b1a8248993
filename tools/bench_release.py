"""What it takes to release a large model: memory and time of export, verify and opening.

    # 10 B parameters: 62 GB of disk
    python tools/bench_release.py --folder /data/scratch
    python tools/bench_release.py --folder /tmp/x --model configs/model/base.yaml

Makes a run whose checkpoint is sharded over ranks as FSDP shards it (its numbers are drawn once and
repeated), then starts a fresh process for each step and reports that process's peak memory (maximum
resident set, mapped files included) and wall time. Files are dropped from the page cache before
they are opened. Everything is deleted afterwards.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from mmscale import prf
from mmscale.checkpoint.run_state import RunState
from mmscale.config import Config, DataConfig, SetConfig, TaskConfig
from mmscale.config_file import dump_config, load_model_config
from mmscale.data.tokenizer import Tokenizer
from mmscale.model.empty import build_empty
from mmscale.release.weight_writer import write_header

_TILE_BYTES = 16 << 20
_SPARE_BYTES = 8 << 30
_STEPS = {
    "export, signed": (
        "from mmscale.cli import main; main(['export', '{run}', '--out', '{out}', '--dtype', "
        "'{dtype}', '--sign-key', '{keys}/private.pem'])"
    ),
    "verify": (
        "from mmscale.cli import main; "
        "main(['verify', '{out}', '--public-key', '{keys}/public.pem'])"
    ),
    "open": "m = mmscale.load('{out}', verify=False)",
    "open and read one block": (
        "m = mmscale.load('{out}', verify=False); print(sum(p.detach().double().sum().item()"
        " for p in m.predictor.model.blocks[0].parameters()))"
    ),
    "open, every hash checked": "m = mmscale.load('{out}')",
}


def main() -> None:
    """Make the run, measure every step, print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="scratch folder on a disk with room"
    )
    parser.add_argument("--model", default="configs/model/10b.yaml")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--checkpoint-dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    arguments = parser.parse_args()
    work = arguments.folder / "bench-release"
    work.mkdir(parents=True)
    try:
        run = work / "run"
        parameters = make_run(
            run, arguments.model, arguments.ranks, getattr(torch, arguments.checkpoint_dtype)
        )
        print(
            f"{parameters:,} parameters, {arguments.ranks} shards of "
            f"{arguments.checkpoint_dtype}\n",
            flush=True,
        )
        subprocess.run(
            [sys.executable, "-m", "mmscale", "keygen", "--out", str(work / "keys")], check=True
        )
        print("| step | wall time | peak memory |\n|---|---|---|", flush=True)
        for name, code in _STEPS.items():
            filled = code.format(
                run=run, out=work / "release", keys=work / "keys", dtype=arguments.dtype
            )
            seconds, peak = measure(filled, work)
            print(f"| {name} | {seconds:.1f} s | {peak / 2**30:.2f} GiB |", flush=True)
        size = sum(path.stat().st_size for path in (work / "release").iterdir())
        print(f"\nthe release: {size:,} bytes in {len(list((work / 'release').iterdir()))} files")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def make_run(run: Path, model_file: str, ranks: int, dtype: torch.dtype) -> int:
    """Write config, tokenizer and one checkpoint; returns the number of parameters."""
    model, media = load_model_config(model_file)
    model.vocab_size = model.vocab_size or 32_768
    task = TaskConfig(target="text")
    data = DataConfig(sets={"none": SetConfig(shards=[str(run / "no-shards")], tasks=[task])})
    config = Config(
        description="a benchmark; its weights mean nothing", model=model, media=media, data=data
    )
    config.run.dir = str(run)
    shapes = {f"model.{name}": tuple(p.shape) for name, p in build_empty(config).named_parameters()}
    parameters = sum(math.prod(shape) for shape in shapes.values())
    needed = parameters * (dtype.itemsize + 2) + _SPARE_BYTES
    if shutil.disk_usage(run.parent).free < needed:
        raise SystemExit(
            f"{run.parent}: {needed / 1e9:.0f} GB must be free; name another --folder or a smaller "
            "--model"
        )
    folder = run / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    Tokenizer.train(["some words to begin with"] * 4, 300).save(run / "tokenizer.json")
    tile = (
        torch.from_numpy(prf.normal(7, _TILE_BYTES // 4))
        .mul_(0.02)
        .to(dtype)
        .view(torch.uint8)
        .numpy()
        .data
    )
    files = {}
    for rank in range(ranks):
        own, begins = {}, {}
        for name, shape in shapes.items():
            rows = -(-shape[0] // ranks)
            first = min(rank * rows, shape[0])
            own[name] = (min(rows, shape[0] - first), *shape[1:])
            begins[name] = {"saved_offsets": [first, *([0] * (len(shape) - 1))]}
        path = folder / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"
        digest = hashlib.sha256()
        with open(path, "wb") as file:
            digest.update(write_header(file, own, dtype, DCP_SHARDING_INFO=json.dumps(begins)))
            left = sum(math.prod(shape) for shape in own.values()) * dtype.itemsize
            while left:
                digest.update(tile[:left])
                left -= file.write(tile[:left])
        files[path.name] = {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    state = {**asdict(RunState(step=1, fingerprint="0" * 64)), "files": files}
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    return parameters


def measure(code: str, work: Path) -> tuple[float, int]:
    """(seconds, peak bytes) of ``code`` in a fresh process; the time is without starting Python and
    importing torch.
    """
    for path in work.rglob("*.safetensors"):
        with open(path, "rb") as file:
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    timed = (
        "import time, json, resource, sys, mmscale, mmscale.release.trained_model, "
        "mmscale.release.export\n"
        "sys.stdout = sys.stderr\n"
        f"began = time.perf_counter()\n{code}\ntook = time.perf_counter() - began\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "print(json.dumps([took, peak]), file=sys.__stdout__, flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", timed], stdout=subprocess.PIPE, text=True, check=True
    )
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


if __name__ == "__main__":
    main()
