"""One step's numbers, there and back through one tensor."""

import pytest
import torch

from mmscale.train.step_sums import StepSums


def numbers_of(rank, loss):
    return StepSums(
        losses={"next_token": torch.tensor(loss), "ctc": torch.tensor(2 * loss)},
        broken=rank,
        samples=10,
        interrupted=False,
        stopped=rank == 1,
        work_s=[0.5 if at == rank else 0.0 for at in range(3)],
        wait_s=[0.25 * (rank + 1) if at == rank else 0.0 for at in range(3)],
    )


def test_the_sum_of_three_ranks_is_read_by_name():
    packed = sum(numbers_of(rank, loss=rank + 1.0).pack() for rank in range(3))
    assert packed.dtype == torch.float32
    assert StepSums.unpack(packed, ["next_token", "ctc"], 3) == StepSums(
        losses={"next_token": 6.0, "ctc": 12.0},
        broken=3.0,
        samples=30.0,
        interrupted=0.0,
        stopped=1.0,
        work_s=[0.5, 0.5, 0.5],
        wait_s=[0.25, 0.5, 0.75],
    )


@pytest.mark.parametrize(("losses", "ranks"), [(["next_token"], 3), (["next_token", "ctc"], 2)])
def test_a_tensor_of_another_length_is_refused(losses, ranks):
    with pytest.raises(AssertionError):
        StepSums.unpack(numbers_of(0, 1.0).pack(), losses, ranks)
