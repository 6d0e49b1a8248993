"""Which checkpoints stay, which are passed over, and what a failed save leaves behind."""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_module
from small_run import one_rank

from mmscale.checkpoint.run_state import RetentionPolicy, RunState, list_checkpoints, read_state
from mmscale.checkpoint.store import CheckpointStore
from mmscale.errors import UserError

TENSORS = {"model.a": torch.arange(6.0).view(2, 3), "model.b": torch.ones(5)}


def save(store: CheckpointStore, step: int, loss: float = 1.0) -> None:
    tensors = {name: tensor + step for name, tensor in TENSORS.items()}
    store.save(tensors, RunState(step=step, fingerprint="f" * 64, loss=loss))
    store.wait()


def steps(folder: Path) -> list[int]:
    return [read_state(path).step for path in list_checkpoints(folder)]


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (RetentionPolicy(2), [9, 10]),
        (RetentionPolicy(1, every=4), [4, 8, 10]),
        (RetentionPolicy(1, best=True), [6, 10]),
        (RetentionPolicy(1, every=5, best=True), [6, 10]),
    ],
)
def test_which_checkpoints_stay(tmp_path, keep, left):
    losses = {1: float("nan"), 2: 3.0, 4: 2.0, 6: 0.5, 8: 0.7, 9: float("inf"), 10: 0.9}
    with one_rank():
        store = CheckpointStore(tmp_path, keep)
        for step, loss in losses.items():
            save(store, step, loss)
    assert steps(tmp_path) == left
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def test_the_newest_whole_checkpoint_is_taken_and_the_others_are_told(tmp_path, capfd):
    with one_rank():
        store = CheckpointStore(tmp_path, RetentionPolicy(9))
        for step in range(1, 7):
            save(store, step)
        files = {step: tmp_path / f"step-{step:08d}" for step in range(1, 7)}
        tensors = {step: next(folder.glob("*.safetensors")) for step, folder in files.items()}
        flip(tensors[6])
        tensors[5].write_bytes(tensors[5].read_bytes()[:-1])
        tensors[4].unlink()
        (files[3] / "state.json").write_text("{")
        capfd.readouterr()
        assert store.newest() == files[2]
        message = capfd.readouterr().err
        for step, reason in (
            (6, "another SHA-256"),
            (5, "bytes long"),
            (4, "No such file"),
            (3, "damaged checkpoint"),
        ):
            assert f"passed over {files[step]}: " in message and reason in message
        restored = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
        store.restore(files[2], restored)
        assert torch.equal(restored["model.a"], TENSORS["model.a"] + 2)
        flip(tensors[2])
        flip(tensors[1])
        with pytest.raises(UserError, match="none of its 6 checkpoints is whole"):
            store.newest()
        with pytest.raises(
            UserError, match=r"no checkpoint \(state\.json is missing\); those of a run"
        ):
            read_state(tmp_path)


@pytest.mark.parametrize(
    ("last", "saves", "left"), [(1, [5], [5]), (2, [5], [4, 5]), (2, [7, 8], [7, 8])]
)
def test_what_was_passed_over_takes_no_place_and_the_newest_stays(tmp_path, last, saves, left):
    """The damaged ones have the right sizes, so only a start that hashes them knows."""
    with one_rank():
        store = CheckpointStore(tmp_path, RetentionPolicy(9))
        for step in (2, 4, 6, 9):
            save(store, step)
        for step in (6, 9):
            flip(next((tmp_path / f"step-{step:08d}").glob("*.safetensors")))
        store = CheckpointStore(tmp_path, RetentionPolicy(last))
        assert store.newest() == tmp_path / "step-00000004"
        assert steps(tmp_path) == [2, 4, 6, 9], "a start alone removes nothing"
        for step in saves:
            save(store, step)
        assert steps(tmp_path) == left
        assert (
            CheckpointStore(tmp_path, RetentionPolicy(1)).newest()
            == tmp_path / f"step-{left[-1]:08d}"
        )


def test_one_whose_state_is_damaged_is_left_to_look_at(tmp_path):
    with one_rank():
        store = CheckpointStore(tmp_path, RetentionPolicy(1, every=2))
        for step in (4, 6):
            save(store, step)
        (tmp_path / "step-00000006" / "state.json").write_text("{")
        store = CheckpointStore(tmp_path, RetentionPolicy(1))
        store.newest()
        save(store, 5)
        assert [path.name[-1] for path in list_checkpoints(tmp_path)] == ["5", "6"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": "3"}, "step is no int"),
        ({"seen": True}, "seen is no int"),
        ({"loss": None}, "loss is no float"),
        ({"fingerprint": 5}, "fingerprint is no str"),
        ({"files": {}}, "it lists no files"),
        ({"files": []}, "it lists no files"),
    ],
)
def test_a_state_of_other_types_is_damaged(tmp_path, change, reason):
    with one_rank():
        save(CheckpointStore(tmp_path, RetentionPolicy(1)), 3)
    path = tmp_path / "step-00000003" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=rf"step-00000003: damaged checkpoint \({reason}"):
        read_state(path.parent)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("model.c", r"model\.\*"),
        ("ema.a", r"train\.ema"),
        ("momentum_buffer.a", r"train\.optimizer\.name"),
    ],
)
def test_what_was_changed_is_named(tmp_path, name, key):
    with one_rank():
        store = CheckpointStore(tmp_path, RetentionPolicy(1))
        save(store, 3)
        wanted = {**{name: tensor.clone() for name, tensor in TENSORS.items()}, name: torch.ones(2)}
        with pytest.raises(UserError, match=rf"\({name} is missing\); was {key} changed since"):
            store.restore(tmp_path / "step-00000003", wanted)


def test_what_one_rank_saves_after_it_has_left_the_others_is_no_checkpoint(tmp_path):
    """One of two ranks ends with an error while a save begins: PyTorch would save what it has as
    the whole.
    """
    done = run_module(["leaving_rank", str(tmp_path)], ranks=2, cwd=ROOT / "tests" / "checkpoint")
    assert "1 of 2 ranks wrote their share" in done.stderr
    assert steps(tmp_path) == [1]


def test_every_file_is_named_with_its_size_and_digest(tmp_path):
    import hashlib

    with one_rank():
        save(CheckpointStore(tmp_path, RetentionPolicy(1)), 3)
    (folder,) = list_checkpoints(tmp_path)
    files = json.loads((folder / "state.json").read_text())["files"]
    on_disk = {path.name for path in folder.iterdir()} - {"state.json"}
    assert on_disk == set(files) and files
    for name, fact in files.items():
        data = (folder / name).read_bytes()
        assert fact == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_save_that_fails_leaves_the_ones_before_and_the_run_alive(tmp_path, capfd):
    with one_rank():
        store = CheckpointStore(tmp_path, RetentionPolicy(1))
        save(store, 1)
        blocked = tmp_path / ".step-00000002.partial"
        blocked.write_text("a file where a folder must go")
        os.chmod(tmp_path, 0o755)
        save(store, 2)
        assert "could not be written" in store.failure and steps(tmp_path) == [1]
        assert "the run continues" in capfd.readouterr().err
        blocked.unlink()
        save(store, 3)
        assert store.failure == "" and steps(tmp_path) == [3]


@pytest.mark.skipif(
    os.geteuid() != 0, reason="a full disk is a small tmpfs, which needs root to mount"
)
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    import subprocess

    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], check=False
    ).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        with one_rank():
            store = CheckpointStore(folder / "checkpoints", RetentionPolicy(3))
            save(store, 1)
            store.save({"model.big": torch.ones(100_000)}, RunState(step=2, fingerprint="f" * 64))
            store.wait()
            assert "could not be written" in store.failure
            assert steps(folder / "checkpoints") == [1]
            save(store, 3)
            assert store.failure == "" and steps(folder / "checkpoints") == [1, 3]
    finally:
        subprocess.run(["umount", str(folder)], check=True)
