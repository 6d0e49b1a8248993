"""Ranks from the launcher's environment, and what FSDP2 must not depend on."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, run_module
from mixed_ranks import WAYS
from patience import patience

from mmscale.config import Config
from mmscale.errors import UserError
from mmscale.parallel.ranks import Ranks, read_environment
from mmscale.parallel.strategy import build_strategy

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_no_launcher_is_one_rank(environment):
    assert read_environment() == (0, 1, 0, 1)


def test_launcher(environment):
    for name, value in zip(VARIABLES, ("3", "8", "1", "2", "host", "29500"), strict=True):
        environment.setenv(name, value)
    assert read_environment() == (3, 8, 1, 2)
    for name, wrong in (
        ("WORLD_SIZE", "0"),
        ("RANK", "8"),
        ("LOCAL_WORLD_SIZE", "0"),
        ("RANK", "-1"),
    ):
        with environment.context() as changed:
            changed.setenv(name, wrong)
            with pytest.raises(UserError, match=f"{name}={wrong}"):
                read_environment()
    environment.setenv("RANK", "three")
    with pytest.raises(UserError, match="must be integers"):
        read_environment()


def test_half_an_environment_is_an_error_that_names_what_is_missing(environment):
    environment.setenv("RANK", "0")
    environment.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"sets RANK, WORLD_SIZE but not MASTER_ADDR, MASTER_PORT"):
        read_environment()


def test_single_under_several_ranks_is_a_contradiction():
    config = Config()
    config.parallel.strategy = "single"
    with pytest.raises(
        UserError, match=r"parallel\.strategy=single, but the launcher started 2 ranks"
    ):
        build_strategy(
            config, Ranks(rank=0, world=2, local_rank=0, local_world=2, device=torch.device("cpu"))
        )


def test_ranks_of_one_modality_or_none_neither_hang_nor_change_the_gradients():
    """Four ranks: text only, pictures only, clips only, padding only, under every strategy; fresh
    weights and gradients equal the single process's."""
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "4",
    ]
    variables = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [*launch, str(ROOT / "tests" / "parallel" / "mixed_ranks.py")],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=patience(90),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for way in WAYS:
        assert done.stderr.count(f"gradients agree: {way}\n") == 4, way


def test_fsdp_alone_on_one_rank_trains(tmp_path, small_run):
    command = [
        "mmscale",
        "train",
        "configs/train/digits.yaml",
        *small_run,
        f"run.dir={tmp_path}",
        "train.steps=2",
    ]
    run_module([*command, "parallel.strategy=fsdp"])
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
