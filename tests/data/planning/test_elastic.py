"""A batch is a function of the step: the same keys and the same bytes for any ranks, workers,
batching or start.
"""

import json
import subprocess
import sys

import pytest
from conftest import ROOT, run_module
from patience import patience
from plans import make_plan

from mmscale.config_file import load_config
from mmscale.data.planning.step_plan import check_world
from mmscale.errors import UserError
from mmscale.train.prepare import run_tokenizer

CONFIG = "configs/train/digits.yaml"


def start(small_run, steps, rank, world, workers, micro_batch, *more):
    arguments = [
        CONFIG,
        steps,
        str(rank),
        str(world),
        str(workers),
        str(micro_batch),
        *small_run,
        *more,
    ]
    environment = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "PATH": "/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "checksums", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def collect(*processes):
    """(step, sequence) → (keys, checksum) of everything the processes print."""
    out = {}
    for process in processes:
        text, _ = process.communicate(timeout=patience(20))
        assert process.returncode == 0
        for line in text.splitlines():
            row = json.loads(line)
            place = row["step"], row["sequence"]
            assert place not in out, "two ranks read the same sequence"
            out[place] = row["keys"], row["sha256"]
    return out


def test_same_samples_and_bytes_on_any_ranks_workers_and_start(small_run):
    whole = collect(start(small_run, "0:9", 0, 1, 0, 4))
    assert len(whole) == 36 and len({checksum for _, checksum in whole.values()}) == 36

    two_ranks = collect(*(start(small_run, "0:9", rank, 2, 1, 1) for rank in range(2)))
    assert two_ranks == whole
    four_ranks_resumed = collect(
        *(start(small_run, "5:9", rank, 4, rank % 3, 1) for rank in range(4))
    )
    assert four_ranks_resumed == {place: seen for place, seen in whole.items() if place[0] >= 5}


def test_data_order_reports_the_same_and_deals_every_sequence_once(small_run):
    whole = collect(start(small_run, "3:6", 0, 1, 0, 2))
    base = ["mmscale", "data", "order", CONFIG, *small_run, "--steps", "3:6", "--world", "2"]
    rows = [json.loads(line) for line in run_module(base).stdout.splitlines()]
    assert {(row["step"], row["sequence"]): row["keys"] for row in rows} == {
        p: keys for p, (keys, _) in whole.items()
    }
    assert sorted(row["rank"] for row in rows) == [0] * 6 + [1] * 6
    first = [json.loads(line) for line in run_module([*base, "--rank", "1"]).stdout.splitlines()]
    assert first == [row for row in rows if row["rank"] == 1]


@pytest.fixture(scope="module")
def plan(small_run, tmp_path_factory):
    config = load_config(CONFIG, [*small_run, f"run.dir={tmp_path_factory.mktemp('none')}"])
    return make_plan(config, run_tokenizer(config))


def test_every_sample_once_an_epoch_over_steps(plan):
    planned_set = plan.sets[0]
    per_epoch = planned_set.order.sequences_per_epoch
    seen, step = {}, 0
    while len(seen) < 3 * per_epoch:
        for sequence in plan.step(step).sequences:
            seen.setdefault(sequence.epoch, []).extend(sequence.samples.tolist())
        step += 1
        if min(len(seen.get(epoch, [])) for epoch in range(2)) >= len(planned_set.dataset):
            break
    for epoch in range(2):
        assert sorted(seen[epoch]) == list(range(len(planned_set.dataset)))


def test_ranks_share_equally_and_costs_are_balanced(plan):
    for step in range(5):
        shares = [plan.share(step, rank, 2) for rank in range(2)]
        assert [len(share) for share in shares] == [2, 2]
        numbers = sorted(sequence.number for share in shares for sequence in share)
        assert numbers == [0, 1, 2, 3]


def test_a_world_that_does_not_divide_is_an_error_that_lists_those_that_do(small_run, tmp_path):
    with pytest.raises(UserError, match=r"use 1, 2, 3, 4, 6, 12 ranks, or make it a multiple of 5"):
        check_world(12, 5)
    done = run_module(
        [
            "mmscale",
            "train",
            CONFIG,
            *small_run,
            f"run.dir={tmp_path}",
            "data.sequences=5",
            "data.contrast_sequences=1",
        ],
        ranks=2,
        check=False,
    )
    assert done.returncode != 0
    assert "data.sequences=5 cannot be shared by 2 ranks; use 1, 5 ranks" in done.stderr
    assert "mmscale/train/loop.py" not in done.stderr, "no traceback of ours for bad input"


def test_fingerprint_follows_what_changes_the_batches(small_run, plan, tmp_path):
    def fingerprint(*overrides):
        config = load_config(CONFIG, [*small_run, f"run.dir={tmp_path}", *overrides])
        return make_plan(config, run_tokenizer(config)).fingerprint(3)

    expected = plan.fingerprint(3)
    assert fingerprint() == expected == fingerprint("data.workers=3", "train.steps=5")
    assert fingerprint("seed=1") != expected
    assert fingerprint("data.sets.digits.augment.image_flip=true") != expected
    assert fingerprint("data.seq_len=512") != expected
