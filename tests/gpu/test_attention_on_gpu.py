"""FlexAttention, compiled, computes what the dense path computes in float32 on the CPU, forward and
backward.
"""

import pytest
import torch
from packings import random_batch

from mmscale.model.attention import attend, make_plan

WIDTH = 32


def inputs(batch, heads, kv_heads):
    generator = torch.Generator().manual_seed(0)
    shape = batch.segment_BL.shape
    return [
        torch.randn(*shape, count, WIDTH, generator=generator)
        for count in (heads, kv_heads, kv_heads)
    ]


def outcome(tensors, batch, path, device, dtype):
    """Output and gradients at the positions that are real, float32 on the CPU."""
    moved = [tensor.detach().to(device, dtype, copy=True).requires_grad_() for tensor in tensors]
    batch = batch.to(torch.device(device))
    out = attend(*moved, make_plan(batch, path))
    real = (batch.segment_BL > 0)[..., None, None]
    (out.float().cos() * real).sum().backward()
    return [(out * real).detach().float().cpu(), *(tensor.grad.float().cpu() for tensor in moved)]


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (10, 2)])
@pytest.mark.parametrize(("sequences", "length"), [(2, 256), (3, 160), (1, 1024)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 1e-2)])
def test_paths_agree(heads, kv_heads, sequences, length, dtype, tolerance):
    for seed, kinds in ((0, "tia"), (1, "t")):
        batch = random_batch(seed, sequences, length, kinds)
        tensors = inputs(batch, heads, kv_heads)
        expected = outcome(tensors, batch, "dense", "cpu", torch.float32)
        for path in ("flex", "dense"):
            found = outcome(tensors, batch, path, "cuda", dtype)
            for one, other in zip(found, expected, strict=True):
                assert (one - other).norm() <= tolerance * other.norm()


def test_a_batch_of_padding_is_finite():
    batch = random_batch(1, 2, 256, kinds="")
    for tensor in outcome(inputs(batch, 4, 2), batch, "flex", "cuda", torch.bfloat16):
        assert tensor.isfinite().all()
