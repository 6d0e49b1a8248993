"""The demo: build the embedded data, train on two processes, evaluate, release, recognise, and
print a table.

Every number printed comes from the run just made.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tqdm import tqdm

from mmscale.config_file import load_config
from mmscale.data.index.dataset import Dataset

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/train/digits.yaml"


def main() -> None:
    """Run every stage; stops with the failing stage's own message."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run-dir",
        default="runs/demo",
        help="where the run goes; finished stages are not repeated",
    )
    parser.add_argument("--processes", type=int, default=2, help="ranks to train with (default: 2)")
    parser.add_argument("overrides", nargs="*", help="key=value, such as train.steps=50")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    began = time.perf_counter()
    run_dir, release = Path(arguments.run_dir), Path(arguments.run_dir) / "release"
    overrides = [f"run.dir={run_dir}", *arguments.overrides]

    report(
        f"1/4  Train {CONFIG} with FSDP2 on {arguments.processes} processes (the data is built on "
        "first use)"
    )
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(arguments.processes),
        "-m",
    ]
    # The ranks choose their own number of threads; this only keeps torchrun from warning that it
    # chose one.
    call(
        [*launcher, "mmscale", "train", CONFIG, "parallel.strategy=fsdp", *overrides],
        OMP_NUM_THREADS="1",
    )

    report("2/4  Evaluate on held-out samples: unseen writers, unheard voices")
    scores = json.loads(call(["-m", "mmscale", "eval", str(run_dir), "--json"], capture=True))

    report("3/4  Export a release")
    if release.exists():
        shutil.rmtree(release)
    call(["-m", "mmscale", "export", str(run_dir), "--out", str(release)])

    report("4/4  Open the release again and recognise one picture and one clip")
    recognised = recognise(release)

    print()
    print(table(scores))
    print()
    for line in recognised:
        print(line)
    print()
    for name, path in {
        "data": "build/data/digits",
        "run": run_dir,
        "metrics": run_dir / "metrics.jsonl",
        "scores": run_dir / "scores.json",
        "release": release,
    }.items():
        print(f"  {name:<10}{path}")
    print(f"  {'curves':<10}.venv/bin/tensorboard --logdir {run_dir / 'tensorboard'}")
    print(f"\nFinished in {time.perf_counter() - began:.0f} s.")


def recognise(release: Path) -> list[str]:
    """Classify the first test sample's picture and transcribe its clip with the exported model
    alone.
    """
    import mmscale

    model = mmscale.load(release)
    config = load_config(CONFIG)
    dataset = Dataset.open(config.eval["image digits"].shards)
    labels = sorted(
        {text for sample in range(len(dataset)) if (text := dataset.text("json.label", sample))}
    )
    sample = 0
    label, probability = model.classify(
        labels, image=dataset.read("image", sample), prompt="digit"
    )[0]
    word = model.transcribe(audio=dataset.read("audio", sample), prompt="word")
    key = dataset.key(sample)
    truth = {field: dataset.text(field, sample) for field in ("json.label", "json.word")}
    return [
        f"  picture {key}.png  is recognised as {label!r} ({probability:.0%}); it is "
        f"{truth['json.label']!r}",
        f"  clip    {key}.flac is heard as {word!r}; it is {truth['json.word']!r}",
    ]


def table(scores: dict[str, dict[str, object]]) -> str:
    """The scores as a text table."""
    from mmscale.evaluate.run import format_table

    return format_table(scores)


def report(text: str) -> None:
    """Announce a stage above any progress bar."""
    tqdm.write(f"\n== {text}", file=sys.stderr)


def call(arguments: list[str], capture: bool = False, **variables: str) -> str:
    """Run this Python with ``arguments``; ends the demo with the same status if it fails."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout or ""


if __name__ == "__main__":
    main()
