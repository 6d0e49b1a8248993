"""Batches from loader processes: the same as without, however long they are kept, in memory that is
used again.
"""

import dataclasses
import gc
import subprocess
import sys

import pytest
import torch
from packings import MEDIA
from patience import patience
from plans import make_plan
from small_run import small_config, write_shards

from mmscale.data.loading import loader as loading
from mmscale.data.loading import shared_memory
from mmscale.data.loading.assembler import Assembler
from mmscale.data.loading.loader import MicroBatches, iterate_steps
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError

STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader")
    write_shards(folder / "shards")
    config = small_config(folder / "run", folder / "shards")
    assert config.media == MEDIA
    config.data.sequences = 4
    tokenizer = Tokenizer.train(["zero one two three picture of"] * 4, 300)
    plan = make_plan(config, tokenizer)
    return MicroBatches(
        plan, Assembler(config, plan, tokenizer), steps=STEPS, micro_batch=1, rank=0, world=1
    )


def batches(data, workers):
    steps = iterate_steps(data, 0, workers=workers, prefetch=2, pin_memory=False)
    return (step.batches for step in steps)


def copy(batch):
    return {name: tensor.clone() for name, tensor in batch.tensors().items()}


def same(batch, expected):
    tensors = batch.tensors()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_the_fork_server_has_imported_what_loaders_need():
    """And this process, which has not, continues at once. A loader then starts without imports."""
    program = """
import sys, time
from multiprocessing import forkserver
from mmscale.data.loading.fork_server import start_fork_server
start_fork_server()
assert "torch" not in sys.modules
maps = f"/proc/{forkserver._forkserver._forkserver_pid}/maps"
end = time.monotonic() + float(sys.argv[1])
while "libtorch" not in open(maps).read():
    assert time.monotonic() < end, "torch is not imported there"
    time.sleep(0.05)
"""
    subprocess.run([sys.executable, "-c", program, str(patience(5))], check=True)


class _Broken(MicroBatches):
    """What finds at item 3, or where it is opened, that the user has to do something."""

    opens = True

    def __getitem__(self, index):
        if index == 3:
            raise UserError("the shards were exchanged; restore them")
        return super().__getitem__(index)

    def __setstate__(self, state):
        self.__dict__.update(state)
        if not self.opens:
            raise UserError("the index is gone; make it again")


@pytest.mark.parametrize(
    ("opens", "message", "before"), [(True, "the shards were", 3), (False, "the index is", 0)]
)
def test_what_the_user_has_to_do_comes_out_of_a_worker_as_it_is(data, opens, message, before):
    broken = _Broken.__new__(_Broken)
    broken.__dict__.update(data.__dict__, opens=opens, per_step=1)
    seen = 0
    with pytest.raises(UserError, match=rf"^{message}[^\n]*$"):
        for _ in batches(broken, workers=1):
            seen += 1
    assert seen == before


def test_blocks_are_filled_again_and_what_is_kept_stays(data):
    expected = [[copy(batch) for batch in step] for step in batches(data, 0)]
    assert len(expected) == STEPS and len(expected[0]) == 4
    kept, most = [], 0
    loader = batches(data, 2)
    for number, step in enumerate(loader):
        for batch, wanted in zip(step, expected[number], strict=True):
            same(batch, wanted)
        if number % 4 == 1:
            # Views outlive the batch.
            kept.append((step[2].image_N3HW, step[2].text_at_T[1:], expected[number][2]))
        (blocks,) = shared_memory._received.values()
        most = len(blocks)
    # 48 batches in few blocks: one for each of the three kept, the step in hand, the step that
    # gathers, and two workers with two batches each in the making or waiting.
    assert len(kept) == 3 and most <= len(kept) + 2 * 4 + 2 * 2, most
    for picture, text, wanted in kept:
        assert torch.equal(picture, wanted["image_N3HW"]) and torch.equal(
            text, wanted["text_at_T"][1:]
        )
    del loader, step, batch, blocks
    gc.collect()
    assert not shared_memory._received
    assert torch.equal(kept[0][0], kept[0][2]["image_N3HW"])


def test_only_the_wait_for_a_step_is_measured(data, monkeypatch):
    """By a clock on which a micro-batch takes a second, and training 100."""
    now = 0.0
    monkeypatch.setattr(loading.time, "perf_counter", lambda: now)
    make = MicroBatches.__getitem__

    def slow(self, index):
        nonlocal now
        now += 1.0
        return make(self, index)

    monkeypatch.setattr(MicroBatches, "__getitem__", slow)
    for step in iterate_steps(data, STEPS - 3, workers=0, prefetch=2, pin_memory=False):
        assert step.wait_s == len(step.batches) == data.per_step
        now += 100.0
    assert now == 3 * (100.0 + data.per_step)


def test_a_block_is_lent_until_the_last_tensor_is_gone(data, monkeypatch):
    monkeypatch.setattr(shared_memory, "_own", [])
    first, second = data[0], data[1]
    handed = shared_memory.to_shared(first, "here")
    batch = shared_memory.from_shared(handed)
    same(batch, copy(first))
    with_block = handed.block
    again = shared_memory.to_shared(second, "here")
    assert again.block != with_block and again.memory is not None
    other = shared_memory.from_shared(again)
    view = batch.segment_BL[:, 3:]
    del batch, handed
    assert shared_memory.to_shared(second, "here").block not in (with_block, again.block)
    del view
    third = shared_memory.to_shared(first, "here")
    assert third.block == with_block and third.memory is None
    same(shared_memory.from_shared(third), copy(first))
    same(other, copy(second))
    # A batch that no free block can hold replaces one.
    large = dataclasses.replace(
        first, image_N3HW=torch.ones(64, *first.image_N3HW.shape[1:]).byte()
    )
    grown = shared_memory.to_shared(large, "here")
    assert grown.block == with_block and grown.memory is not None
    same(shared_memory.from_shared(grown), copy(large))
    shared_memory.release("here")
    assert "here" not in shared_memory._received
