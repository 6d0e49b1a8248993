"""ZeRO-3 whose moments and master weights wait in files: swapped for real, the same curve, before
and after a resume.

Run by ``make strategies``: needs ``libaio-dev``, and DeepSpeed compiles for some minutes, once a
    machine.
"""

import os
import shutil
from pathlib import Path

import pytest
from conftest import run_module
from killing import metrics

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("MMSCALE_STRATEGIES") != "all", reason="run by make strategies"
    ),
    pytest.mark.skipif(
        not Path("/usr/include/libaio.h").exists(), reason="needs apt-get install libaio-dev"
    ),
]


def losses(folder):
    return [row["loss"] for row in metrics(folder)]


def test_swapped_to_files_the_curve_is_the_same(small_digits, tmp_path):
    """The small model of other tests would not be swapped: DeepSpeed keeps small tensors."""
    ways = {
        "fsdp": ["parallel.strategy=fsdp"],
        "nvme": [
            "parallel.strategy=zero3",
            "parallel.offload=nvme",
            f"parallel.offload_dir={tmp_path}/files",
        ],
    }

    def train(name, folder):
        overrides = [
            "data.prepare=", f"data.sets.digits.shards={small_digits}/train", "data.workers=0",
            "train.steps=6",
            "train.checkpoint_every=3", "train.keep_last=2", "run.progress=false",
            "run.tensorboard=false",
        ]  # fmt: skip
        command = [
            "mmscale",
            "train",
            "configs/train/digits.yaml",
            *overrides,
            f"run.dir={folder}",
            *ways[name],
        ]
        run_module(command, ranks=2, needs=120)

    for name in ways:
        train(name, tmp_path / name)
    assert list((tmp_path / "files").rglob("*.swp")), "nothing was swapped out"
    assert losses(tmp_path / "nvme") == pytest.approx(losses(tmp_path / "fsdp"), rel=1e-4)
    for before, after in (("fsdp", "nvme"), ("nvme", "fsdp")):
        folder = tmp_path / f"{before} then {after}"
        shutil.copytree(tmp_path / before, folder)
        shutil.rmtree(folder / "checkpoints" / "step-00000006")
        train(after, folder)
        assert losses(folder) == pytest.approx(losses(tmp_path / "fsdp"), rel=1e-4)
