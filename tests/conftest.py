"""Shared by all tests: where the real data lies, and how to start real ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from patience import patience
from servers import reserved_port

# Threads that wait for each other sleep, which torch's OpenMP reads when it is loaded: tests run
# side by side, and threads that spin beside a busy core take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
ON_GPU = os.environ.get("MMSCALE_TEST_GPU") == "1"
if not ON_GPU:
    # For these processes and those they start: what is expected is a CPU's, whatever else the
    # machine has.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
torch.set_num_threads(1)
# How fast examples are made is the machine's matter, not the test's; the same ones in every run.
settings.register_profile(
    "any machine",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """tests/gpu runs where it is asked for and can run; elsewhere it is reported as left out."""
    if not ON_GPU or not torch.cuda.is_available():
        reason = "needs a GPU: make test-gpu"
        for item in items:
            if ROOT / "tests" / "gpu" in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of published data sets; tests that need it are skipped, saying so, where it is
    absent.
    """
    folder = Path(os.environ.get("MMSCALE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set MMSCALE_DATA to the folder of published data sets")
    return folder


@pytest.fixture
def port() -> Iterator[int]:
    """Where ranks may meet, given to nobody else meanwhile."""
    with reserved_port() as number:
        yield number


def run_module(
    module: Sequence[str],
    *,
    ranks: int = 1,
    check: bool = True,
    cwd: Path = ROOT,
    needs: float = 30,
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module…`` in ``ranks`` real processes (torchrun when more than one).

    ``needs``: seconds it takes (`patience`).
    """
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    paths = f"{ROOT}:{ROOT / 'tests'}"  # of scripts beside the tests, too
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [*command, *module],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience(needs),
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="session")
def small_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small build of the embedded data set: 120 training and 24 test samples."""
    from mmscale.demo.digits import build_digits

    folder = tmp_path_factory.mktemp("digits") / "digits"
    build_digits(folder, progress=False, samples=120)
    return folder


@pytest.fixture(scope="session")
def small_run(small_digits: Path) -> list[str]:
    """Overrides that make configs/train/digits.yaml run in seconds: a small model on the small
    data, every objective, contrastive groups that span micro-batches and ranks."""
    return [
        "data.prepare=",
        f"data.sets.digits.shards={small_digits}/train",
        "data.tokenizer.vocab_size=320",
        "data.seq_len=256",
        "data.sequences=4",
        "data.contrast_sequences=2",
        "data.sets.digits.tasks=[{input: [image], prompt: digit, target: json.label},"
        " {input: [audio], prompt: word, target: json.word},"
        " {input: [image], prompt: caption, target: text, weight: 0.2},"
        " {objective: contrastive, between: [image, audio, text], match: json.digit, weight: 0.5},"
        " {objective: ctc, input: [audio], target: json.digit, weight: 0.03},"
        " {objective: classify, input: [image], target: json.digit, weight: 0.5}]",
        "data.workers=0",
        "model={width: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 16, hidden: 48, stem_width: "
        "8, embed_dim: 16,"
        " image_stem: cnn, audio_stem: rnn, dropout: 0.1}",
        "train.optimizer={lr: 1e-3, warmup_steps: 2}",
        "run.progress=false",
        "run.tensorboard=false",
    ]
