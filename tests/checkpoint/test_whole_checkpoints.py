"""Export, eval and predict take a checkpoint whose hashes are right, or none."""

import json
import shutil
from pathlib import Path

import pytest
from small_run import save_run, small_config, write_shards

from mmscale.checkpoint.run_folder import load_run
from mmscale.errors import UserError
from mmscale.evaluate.run import evaluate
from mmscale.release.export import ExportOptions, export
from mmscale.release.qwen3 import export_qwen3
from mmscale.release.trained_model import load_trained


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_shards(folder / "shards")
    return save_run(small_config(folder / "run", folder / "shards"), steps=(5, 9))


@pytest.fixture
def run(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


def shard_of(run: Path, step: int) -> Path:
    return next((run / "checkpoints" / f"step-{step:08d}").glob("*.safetensors"))


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 4
    path.write_bytes(raw)


USES = {
    "export": lambda run, out: export(run, out)["step"],
    "qwen3": lambda run, out: export_qwen3(run, out)["step"],
    "predict": lambda run, out: load_trained(run).step,
    "eval": lambda run, out: (
        evaluate(run, tasks=["find"], progress=False)
        and json.loads((run / "scores.json").read_text())["step"]
    ),
}
FAULTS = {
    "flipped": (flip, "another SHA-256"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes long"),
    "a file more": (
        lambda path: shutil.copy(path, path.with_name("x.safetensors")),
        "is not listed",
    ),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_newest_checkpoint_is_passed_over_and_told(run, tmp_path, capsys, use, fault):
    spoil, reason = FAULTS[fault]
    spoil(shard_of(run, 9))
    assert USES[use](run, tmp_path / "out") == 5
    message = capsys.readouterr().err
    assert f"passed over {run / 'checkpoints' / 'step-00000009'}: " in message and reason in message


@pytest.mark.parametrize("use", USES)
def test_damaged_checkpoints_alone_are_refused(run, tmp_path, use):
    for step in (5, 9):
        flip(shard_of(run, step))
    with pytest.raises(UserError, match="run: none of its 2 checkpoints is whole"):
        USES[use](run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_one_that_was_asked_for_is_refused(run, tmp_path):
    shard = shard_of(run, 9)
    flip(shard)
    for use in (
        lambda: export(run, tmp_path / "out", shard.parent),
        lambda: load_run(run, shard.parent),
    ):
        with pytest.raises(
            UserError, match=r"step-00000009: .*another SHA-256.*give another checkpoint"
        ):
            use()
    assert not (tmp_path / "out").exists()


def test_a_damaged_run_to_merge_is_passed_over_or_refused(made, run, tmp_path, capsys):
    options = ExportOptions(merge=[run])
    flip(shard_of(run, 9))
    export(made, tmp_path / "out", options=options)
    assert "run (step 5, " in (tmp_path / "out" / "README.md").read_text()
    assert "passed over" in capsys.readouterr().err
    flip(shard_of(run, 5))
    with pytest.raises(UserError, match="none of its 2 checkpoints is whole"):
        export(made, tmp_path / "out", options=options)


def test_a_scan_of_labels_leaves_damaged_checkpoints_out(run, capsys):
    flip(shard_of(run, 5))
    evaluate(run, tasks=["robustness"], progress=False)
    assert "passed over" in capsys.readouterr().err
