"""A run begins with a release."""

import re

import pytest
import torch
from conftest import run_module
from killing import metrics
from small_run import save_run, small_config, write_shards

from mmscale.checkpoint.run_folder import load_run
from mmscale.data.tokenizer import Tokenizer
from mmscale.release.export import ExportOptions, export
from mmscale.release.open_release import load_release


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("made")
    write_shards(made / "shards", count=4)
    save_run(small_config(made / "run", made / "shards"), steps=(5, 9))
    save_run(small_config(made / "other", made / "shards"), steps=(21,))
    return made


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_fill_their_own_shards(folder, tmp_path, ranks):
    export(
        folder / "run", tmp_path / "out", options=ExportOptions("bfloat16", max_shard_bytes=20_000)
    )
    done = run_module(["checkpoint.fill_ranks", str(tmp_path / "out")], ranks=ranks)
    assert done.stderr.count(": filled") == ranks


def test_a_run_begins_with_a_release(folder, tmp_path, small_run):
    """It takes over weights and tokenizer; a linear head that the release lacks is new."""
    config = ["mmscale", "train", "configs/train/digits.yaml", *small_run]
    plain = "data.sets.digits.tasks=[{input: [image], prompt: digit, target: json.label}]"
    run_module([*config, plain, "train.steps=2", f"run.dir={tmp_path}/first"])
    export(tmp_path / "first", tmp_path / "release")
    begun = [
        f"run.dir={tmp_path}/second",
        f"model.init_from={tmp_path}/release",
        "data.tokenizer.vocab_size=999",
    ]
    head = (
        "data.sets.digits.tasks=[{input: [image], prompt: digit, target: json.label},"
        " {objective: classify, input: [image], target: json.digit}]"
    )
    run_module([*config, head, *begun, "train.steps=1", "train.optimizer.lr=0"])
    first, _ = load_release(tmp_path / "release")
    second, _ = load_run(tmp_path / "second")
    assert second.tokenizer.digest == first.tokenizer.digest
    new = dict(second.model.named_parameters())
    for name, parameter in first.model.named_parameters():
        assert torch.equal(parameter, new.pop(name)), name
    assert new and all(name.startswith("class_heads.") for name in new)
    done = run_module(
        [*config, head, *begun, "run.dir=" + str(tmp_path / "third"), "model.hidden=64"],
        check=False,
    )
    assert done.returncode == 2 and "set model.* as its" in done.stderr
    Tokenizer.train(["one two three"], 300).save(tmp_path / "other.json")
    for number, (wrong, message) in enumerate(
        (
            ("model.rope_theta=500", "model.rope_theta=500: .* was trained with 10000"),
            (
                f"data.tokenizer.file={tmp_path}/other.json",
                "is not the tokenizer of model.init_from",
            ),
            ("parallel.strategy=zero2", "continue with any strategy from its first checkpoint"),
        )
    ):
        done = run_module(
            [*config, head, *begun, f"run.dir={tmp_path}/wrong{number}", "train.steps=1", wrong],
            check=False,
        )
        assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    # As the message said.
    run_module([*config, head, *begun, "train.steps=2", "parallel.strategy=zero2"])
    assert len(metrics(tmp_path / "second")) == 2
