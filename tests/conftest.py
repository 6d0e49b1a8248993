"""Shared by all tests: where the real data lies, and how to start real ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of published data sets; tests that need it are skipped, saying so, where it is absent."""
    folder = Path(os.environ.get("MMSCALE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set MMSCALE_DATA to the folder of published data sets")
    return folder


def run_module(
    module: Sequence[str], *, ranks: int = 1, check: bool = True, cwd: Path = ROOT, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module…`` in ``ranks`` real processes (torchrun when more than one)."""
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, *module], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    if check:
        assert done.returncode == 0, done.stderr[-4000:]
    return done
