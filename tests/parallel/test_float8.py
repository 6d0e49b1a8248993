"""8-bit products, emulated here: another curve than bf16's, but near it, on one rank as on two."""

import json

import pytest
import torch
from checkpoints import weights
from conftest import run_module
from killing import metrics

from mmscale.config import ParallelConfig
from mmscale.config_file import load_config
from mmscale.errors import UserError
from mmscale.parallel.build import build_model
from mmscale.parallel.ranks import join_ranks, leave_ranks


@pytest.fixture(scope="module")
def runs(small_run, tmp_path_factory):
    """Folders of the same training: bf16, emulated on one rank and under fsdp on two."""
    folder = tmp_path_factory.mktemp("float8")
    common = [
        "configs/train/digits.yaml", *small_run, "train.precision=bf16", "train.steps=20",
        "parallel.threads=1",
        "train.micro_batch=2",
    ]  # fmt: skip
    ways = {
        "plain": (1, []),
        "one": (1, ["parallel.float8=emulated"]),
        "two": (2, ["parallel.float8=emulated"]),
    }
    for ranks in (1, 2):
        jobs = [
            [*common, f"run.dir={folder}/{name}", *more]
            for name, (count, more) in ways.items()
            if count == ranks
        ]
        path = folder / f"jobs-{ranks}.json"
        path.write_text(json.dumps(jobs))
        # torchrun for one rank too: the script reads its environment.
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        run_module([*torchrun, "tests/parallel/train_ways.py", str(path)])
    return folder


def test_the_curve_is_near_that_of_bf16_and_not_the_same(runs):
    plain, single = ([row["loss"] for row in metrics(runs / name)] for name in ("plain", "one"))
    gaps = [abs(a / b - 1) for a, b in zip(plain, single, strict=True)]
    assert 1e-5 < max(gaps) < 0.1 and sum(gaps) / len(gaps) < 0.03 and single[-1] < single[0]


def test_two_ranks_compute_the_same(runs):
    single, double = ([row["loss"] for row in metrics(runs / name)] for name in ("one", "two"))
    gaps = [abs(a / b - 1) for a, b in zip(single, double, strict=True)]
    # Other orders of summation move values to the next of few, and the curves apart from there.
    assert (
        gaps[0] < 1e-6 and max(gaps[:3]) < 0.01 and sum(gaps) / len(gaps) < 0.03 and max(gaps) < 0.1
    )
    # A run of any of them can be resumed under any other.
    assert weights(runs / "one").keys() == weights(runs / "plain").keys()


def test_products_of_the_blocks_alone_are_converted():
    config = load_config(
        "configs/train/digits.yaml", ["parallel.float8=emulated", "train.precision=bf16"]
    )
    config.model.vocab_size = 512
    ranks = join_ranks(ParallelConfig(threads=1))
    try:
        model = build_model(config, ranks)
    finally:
        leave_ranks()
    kinds = {
        name: type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert {kind for name, kind in kinds.items() if name.startswith("blocks.")} == {"Float8Linear"}
    assert {kind for name, kind in kinds.items() if not name.startswith("blocks.")} == {"Linear"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.precision=fp32"], "needs train.precision=bf16"),
        (["parallel.strategy=zero2"], "not with parallel.strategy=zero2"),
        (["parallel.tensor=2"], "not with parallel.tensor=2"),
    ],
)
def test_what_it_does_not_go_with_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(
            "configs/train/digits.yaml",
            ["parallel.float8=rowwise", "train.precision=bf16", *overrides],
        )


def test_without_the_hardware_it_is_refused(small_run, tmp_path):
    more = ["parallel.float8=rowwise", "train.precision=bf16", f"run.dir={tmp_path}"]
    done = run_module(
        ["mmscale", "train", "configs/train/digits.yaml", *small_run, *more], check=False
    )
    assert (
        done.returncode == 2
        and "a CPU has no 8-bit" in done.stderr
        and "Traceback" not in done.stderr
    )
