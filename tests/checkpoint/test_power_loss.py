"""The power fails while a run saves and removes checkpoints, at any moment: the next start finds a
whole one. So it is with releases."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from power import MODES, after_power_failure, recording
from small_run import one_rank, save_run, small_config, write_shards

from mmscale import prf
from mmscale.checkpoint.run_state import RetentionPolicy, RunState, read_state
from mmscale.checkpoint.store import CheckpointStore
from mmscale.durable import restore_folder, write_durably
from mmscale.errors import UserError
from mmscale.release.export import export
from mmscale.release.verify_release import verify_release

SAVES = (2, 4, 6)


def tensors(step):
    return {
        "model.a": torch.arange(60.0).view(6, 10) + step,
        "model.b": torch.full((5,), float(step)),
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What was done for four saves of which one stays, and after how many operations each had been
    reported as done.
    """
    root = tmp_path_factory.mktemp("power")
    ends = {}
    with one_rank():
        store = CheckpointStore(root / "run" / "checkpoints", RetentionPolicy(1))
        with recording(root) as done:
            for step in SAVES:
                store.save(tensors(step), RunState(step=step, fingerprint="f" * 64))
                store.wait()
                assert not store.failure
                ends[step] = len(done.operations)
    kinds = [operation.kind for operation in done.operations]
    assert kinds.count("rename") >= 2 * len(SAVES) + len(SAVES) - 1 and kinds.count(
        "flush"
    ) >= 5 * len(SAVES)
    return done, ends


def lost(done, ends, operations, into):
    """Moments at which a start would find no whole checkpoint, or an older one than was
    reported as safe.
    """
    moments = []
    with one_rank():
        for count in range(len(operations) + 1):
            safe = max((step for step, end in ends.items() if end <= count), default=0)
            for number, mode in enumerate(MODES):
                draws = prf.Draws(prf.derive_key("power", count, number))
                shutil.rmtree(into, ignore_errors=True)
                after_power_failure(operations[:count], done.root, into, mode, draws)
                try:
                    newest = CheckpointStore(
                        into / "run" / "checkpoints", RetentionPolicy(1)
                    ).newest()
                except UserError as error:
                    moments.append((count, mode, str(error)))
                    continue
                step = read_state(newest).step if newest else 0
                if step < safe:
                    moments.append((count, mode, f"step {step} instead of {safe}"))
                if newest is None:
                    continue
                read = {name: torch.zeros_like(tensor) for name, tensor in tensors(0).items()}
                CheckpointStore(into / "run" / "checkpoints", RetentionPolicy(1)).restore(
                    newest, read
                )
                assert all(
                    torch.equal(read[name], tensor) for name, tensor in tensors(step).items()
                )
    return moments


def test_every_moment_leaves_a_whole_checkpoint(saved, tmp_path):
    done, ends = saved
    assert lost(done, ends, done.operations, tmp_path / "left") == []


@pytest.mark.parametrize("forgotten", ["files", "folders"])
def test_a_save_that_forgot_to_flush_would_be_caught(saved, tmp_path, forgotten):
    done, ends = saved
    files = {operation.node for operation in done.operations if operation.kind == "write"}
    operations = [
        replace(operation, node=0)
        if operation.kind == "flush" and (operation.node in files) == (forgotten == "files")
        else operation
        for operation in done.operations
    ]
    assert lost(done, ends, operations, tmp_path / "left")


def test_a_release_is_the_old_one_or_the_new_one(tmp_path):
    """At every moment; it may have to be put back first."""
    write_shards(tmp_path / "shards", count=4)
    run = save_run(small_config(tmp_path / "run", tmp_path / "shards"), steps=(1, 2))
    folder, ends = tmp_path / "releases", []
    folder.mkdir()
    with recording(folder) as done:
        for step in (1, 2):
            export(run, folder / "out", run / "checkpoints" / f"step-{step:08d}")
            ends.append(len(done.operations))
    for count in range(ends[0], len(done.operations) + 1):
        for number, mode in enumerate(MODES):
            draws = prf.Draws(prf.derive_key("power", count, number))
            shutil.rmtree(tmp_path / "left", ignore_errors=True)
            after_power_failure(done.operations[:count], done.root, tmp_path / "left", mode, draws)
            left = tmp_path / "left" / "out"
            restore_folder(left)
            verify_release(left)
            step = json.loads((left / "config.json").read_text())["step"]
            assert step == 2 if count >= ends[1] else step in (1, 2)


def test_a_small_file_is_the_old_one_or_the_new_one(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    texts, ends = [f"{number}" * (300 - 50 * number) for number in range(4)], []
    with recording(folder) as done:
        for text in texts:
            write_durably(folder / "a.json", text)
            ends.append(len(done.operations))
    for count in range(ends[0], len(done.operations) + 1):
        safe = max(number for number, end in enumerate(ends) if end <= count)
        for number, mode in enumerate(MODES):
            draws = prf.Draws(prf.derive_key("power", count, number))
            shutil.rmtree(tmp_path / "left", ignore_errors=True)
            after_power_failure(done.operations[:count], done.root, tmp_path / "left", mode, draws)
            assert (tmp_path / "left" / "a.json").read_text() in texts[safe : safe + 2]
