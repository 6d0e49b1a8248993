"""Whole runs in real processes: the same curve at any world size, and exact resume after
SIGKILL.
"""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import weights
from conftest import run_module
from killing import kill_when_reached, metrics

from mmscale import prf

CONFIG = "configs/train/digits.yaml"


def train(folder: Path, small_run: list[str], *overrides: str, ranks: int = 1) -> None:
    run_module(
        ["mmscale", "train", CONFIG, *small_run, f"run.dir={folder}", *overrides], ranks=ranks
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory, small_run) -> Path:
    """Eight uninterrupted fp32 steps in one process."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    train(folder, small_run, "train.steps=8", "train.micro_batch=4")
    return folder


@pytest.mark.parametrize(
    ("ranks", "micro_batch", "workers"), [(1, 1, 0), (2, 2, 1), (2, 1, 0), (4, 1, 0)]
)
def test_loss_curve_does_not_depend_on_the_number_of_ranks(
    tmp_path, small_run, reference, ranks, micro_batch, workers
):
    """Also with and without accumulation, and with loader workers. Dropout and augmentation
    are on.
    """
    overrides = ["train.steps=8", f"train.micro_batch={micro_batch}", f"data.workers={workers}"]
    train(tmp_path, small_run, *overrides, ranks=ranks)
    for row, expected in zip(metrics(tmp_path), metrics(reference), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
        assert row["tokens"] == expected["tokens"]
    state = json.loads(next(tmp_path.glob("checkpoints/*/state.json")).read_text())
    assert len(state["files"]) == ranks, "every rank wrote its own shards"


def test_a_finished_run_started_again_has_nothing_to_do(tmp_path, small_run):
    for _ in range(2):
        train(tmp_path, small_run, "train.steps=2")
    assert [row["step"] for row in metrics(tmp_path)] == [0, 1]


def test_learns_and_reports(tmp_path, small_run):
    train(
        tmp_path,
        small_run,
        "train.steps=40",
        "train.micro_batch=4",
        "train.optimizer={lr: 1e-2, warmup_steps: 4}",
    )
    rows = metrics(tmp_path)
    for objective in rows[0]["losses"]:
        first, last = (
            sum(row["losses"][objective] for row in some) / len(some)
            for some in (rows[:6], rows[-6:])
        )
        assert 0 < last < 0.95 * first, objective
    expected = {
        "step",
        "loss",
        "losses",
        "lr",
        "grad_norm",
        "tokens",
        "tokens_per_s",
        "mfu",
        "step_s",
        "data_wait_s",
    }
    assert expected <= set(rows[0])
    assert (tmp_path / "config.yaml").is_file() and (tmp_path / "tokenizer.json").is_file()


MUON = ["train.optimizer={name: muon, schedule: wsd, lr: 2e-3, warmup_steps: 2}", "train.ema=0.9"]


def test_muon_and_averages_do_not_depend_on_the_number_of_ranks(tmp_path, small_run):
    """Each matrix is orthogonalised whole, wherever its rows lie."""
    states = []
    for ranks in (1, 2):
        train(tmp_path / str(ranks), small_run, *MUON, "train.steps=6", ranks=ranks)
        states.append(weights(tmp_path / str(ranks)))
    assert states[0].keys() == states[1].keys() and any(
        name.startswith("momentum_buffer.") for name in states[0]
    )
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    average, weight = (
        states[0][f"{kind}.blocks.0.attention.q_proj.weight"] for kind in ("ema", "model")
    )
    assert not torch.equal(average, weight)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_at_random_steps_ends_with_bit_identical_weights(tmp_path, small_run, precision):
    overrides = [
        *small_run,
        "train.steps=9",
        "train.checkpoint_every=2",
        f"train.precision={precision}",
        "data.workers=1",
        # bf16 is emulated, slowly, on CPUs without it.
        *(["data.seq_len=128", "data.sequences=2"] if precision == "bf16" else MUON),
    ]
    calm, chaos = tmp_path / "calm", tmp_path / "chaos"
    run_module(["mmscale", "train", CONFIG, *overrides, f"run.dir={calm}"], ranks=2)
    draws = prf.Draws(prf.derive_key("kill", precision))
    for kill_after in (draws.integer(0, 4), draws.integer(4, 8))[precision == "bf16" :]:
        kill_when_reached(
            ["train", CONFIG, *overrides, f"run.dir={chaos}"], chaos, kill_after, ranks=2
        )
        assert len(metrics(chaos)) < 9, "it was killed before its end"
    run_module(["mmscale", "train", CONFIG, *overrides, f"run.dir={chaos}"], ranks=2)

    expected, resumed = weights(calm), weights(chaos)
    assert expected.keys() == resumed.keys()
    kinds = {name.partition(".")[0] for name in expected}
    assert kinds == {
        "model",
        "exp_avg",
        "exp_avg_sq",
        *(["momentum_buffer", "ema"] if precision == "fp32" else []),
    }
    for name, tensor in expected.items():
        assert torch.equal(tensor, resumed[name]), name
    assert [row["step"] for row in metrics(chaos)] == list(range(9)), (
        "no step is missing or reported twice"
    )
    assert [row["loss"] for row in metrics(chaos)] == [row["loss"] for row in metrics(calm)]


def test_resume_on_another_number_of_ranks(tmp_path, small_run, reference):
    """4 steps on two ranks, the rest on one: the curve continues as if nothing had happened."""
    train(tmp_path, small_run, "train.steps=8", "train.checkpoint_every=4", ranks=2)
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    newest.rename(tmp_path / "taken-away")
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 8
    train(tmp_path, small_run, "train.steps=8", "train.checkpoint_every=4", ranks=1)
    for row, expected in zip(metrics(tmp_path), metrics(reference), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
