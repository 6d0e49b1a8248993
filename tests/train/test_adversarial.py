"""Adversarial steps are the same on any number of ranks, and off they are no steps at all."""

import json

import pytest
from conftest import run_module
from killing import metrics

CONFIG = "configs/train/digits.yaml"
ON = ["train.adversarial={image: 8, audio: 0.05, steps: 2, share: 0.5}", "train.steps=4"]


def train(folder, small_run, ranks, *overrides):
    run_module(
        ["mmscale", "train", CONFIG, *small_run, *overrides, f"run.dir={folder}"], ranks=ranks
    )
    return [row["loss"] for row in metrics(folder)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory, small_run):
    return train(tmp_path_factory.mktemp("single") / "run", small_run, 1, *ON)


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (2, ["parallel.strategy=fsdp"]),
        (2, ["parallel.strategy=fsdp", "train.micro_batch=2", "parallel.checkpointing=full"]),
        (2, ["parallel.strategy=ddp"]),
    ],
)
def test_the_same_curve_on_any_number_of_ranks(tmp_path, small_run, reference, ranks, overrides):
    """A gradient of almost 0 may turn its sign with the order of a sum, so the curves are close,
    not equal.
    """
    curve = train(tmp_path / "run", small_run, ranks, *ON, *overrides)
    assert curve == pytest.approx(reference, rel=1e-3)


def test_it_makes_steps_harder_and_bf16_works(tmp_path, small_run, reference):
    plain = train(tmp_path / "plain", small_run, 1, "train.steps=4")
    assert all(hard != easy for hard, easy in zip(reference, plain, strict=True))
    everything = "train.adversarial={image: 64, audio: 0.3, steps: 3}"
    hard = train(tmp_path / "hard", small_run, 1, everything, "train.steps=1")
    assert hard[0] > plain[0]
    small = ["train.precision=bf16", "data.seq_len=128", "data.sequences=2", "train.steps=1"]
    assert (
        len(train(tmp_path / "bf16", small_run, 2, everything, *small, "parallel.strategy=fsdp"))
        == 1
    )


def test_ranks_without_pictures_or_sound_take_part(tmp_path, small_run, small_digits):
    """Two ranks, one sequence each a step, of sets with one modality: a rank that fell behind would
    hang.
    """
    tasks = {"see": "image", "hear": "audio", "read": "text"}
    sets = {
        name: {
            "shards": f"{small_digits}/train",
            "tasks": [{"input": [kind], "target": "json.digit"}],
        }
        for name, kind in tasks.items()
    }
    overrides = [
        override
        for override in small_run
        if not override.startswith(("data.sets", "data.seq", "data.contrast"))
    ]
    more = [
        f"data.sets={json.dumps(sets)}",
        "data.seq_len=128",
        "data.sequences=2",
        "train.steps=6",
    ]
    command = [
        "mmscale",
        "train",
        CONFIG,
        *overrides,
        *more,
        ON[0],
        "parallel.strategy=fsdp",
        f"run.dir={tmp_path}/run",
    ]
    run_module(command, ranks=2)
    assert len(metrics(tmp_path / "run")) == 6
