"""A file written past the page cache is what was given to it, whatever the file system allows."""

import errno
import fcntl
import os

import pytest
import torch
from small_run import one_rank

from mmscale.checkpoint.direct_file import DirectFile
from mmscale.checkpoint.run_state import RetentionPolicy, RunState
from mmscale.checkpoint.store import CheckpointStore

MIB = 1 << 20
# Up to more than all buffers hold.
SIZES = (
    0,
    1,
    4095,
    4096,
    4097,
    MIB,
    9 * MIB + 4096,
    11 * MIB + 77,
)


def write(path, size, piece=300_001):
    data = bytearray(os.urandom(size))
    whole = bytes(data)
    with DirectFile(path) as file:
        for start in range(0, size, piece):
            part = memoryview(data)[start : start + piece]
            file.write(part)
            part[:] = bytes(len(part))  # it need not stay
        file.finish()
        assert file.size == size
    assert path.read_bytes() == whole


def is_direct(handle):
    return bool(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.mark.parametrize("size", SIZES)
def test_it_holds_what_was_written(tmp_path, size):
    (tmp_path / "file").write_bytes(b"older and longer" * 100)
    write(tmp_path / "file", size)


def test_most_of_it_goes_past_the_page_cache(tmp_path, monkeypatch):
    try:
        os.close(os.open(tmp_path / "try", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        pytest.skip("the file system of the tests' folder allows no O_DIRECT")
    wrote, real = {True: 0, False: 0}, os.pwrite

    def pwrite(handle, data, at):
        done = real(handle, data, at)
        wrote[is_direct(handle)] += done
        return done

    monkeypatch.setattr(os, "pwrite", pwrite)
    write(tmp_path / "file", 11 * MIB + 4096 + 77)
    assert wrote == {True: 11 * MIB + 4096, False: 77}


@pytest.mark.parametrize("refused", ["when it is opened", "when it is written"])
def test_a_file_system_that_does_not_allow_it(tmp_path, monkeypatch, refused):
    real_open, real_write, tries = os.open, os.pwrite, []

    def open_(path, flags, *more, **settings):
        if flags & os.O_DIRECT:
            tries.append(path)
            if refused == "when it is opened":
                raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(path, flags, *more, **settings)

    def pwrite(handle, data, at):
        if is_direct(handle):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_write(handle, data, at)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pwrite", pwrite)
    write(tmp_path / "file", SIZES[-1])
    assert tries


def test_writes_that_take_less_than_they_were_given(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda handle, data, at: real(handle, data[: max(1, len(data) // 3)], at)
    )
    write(tmp_path / "file", 2 * MIB + 5000)


@pytest.mark.parametrize("size", [5000, SIZES[-1]])
def test_a_failure_is_told(tmp_path, monkeypatch, size):
    def pwrite(handle, data, at):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "file", size)


def test_a_plan_is_kept_for_like_tensors_of_one_store_only(tmp_path):
    """Every save is restored: of tensors as before, of others, and of another store that saves
    meanwhile.
    """

    def made(store, folder, step, tensors):
        store.save(tensors, RunState(step=step, fingerprint="f" * 64))
        store.wait()
        assert not store.failure, store.failure
        restored = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        store.restore(folder / f"step-{step:08d}", restored)
        assert all(torch.equal(restored[name], tensor) for name, tensor in tensors.items())

    with one_rank():
        store, other_store = (
            CheckpointStore(tmp_path / name, RetentionPolicy(99)) for name in ("one", "other")
        )
        for step in range(1, 9):
            like = {
                "model.a": torch.full((3, 5), float(step)),
                "model.b": torch.arange(step, step + 4),
            }
            made(store, tmp_path / "one", step, like)
            made(
                other_store,
                tmp_path / "other",
                step,
                {"model.a": torch.randn(7), "model.c": torch.randn(step // 3 + 1)},
            )
        made(store, tmp_path / "one", 9, {"model.b": torch.randn(2)})
