"""Muon against a plain computation of the same thing."""

import math

import pytest
import torch

from mmscale.optim.optimizers.muon import Muon, MuonKind, orthogonalise


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7)])
def test_newton_schulz_is_nearly_the_orthogonal_factor(shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.min() > 0.6 and values.max() < 1.3
    high = orthogonalise(matrix)
    low = orthogonalise(matrix.bfloat16())
    assert low.dtype == torch.bfloat16 and (low.float() - high).norm() < 0.05 * high.norm()
    cosine = (high * (u @ vt)).sum() / high.norm() / (u @ vt).norm()
    assert cosine > 0.97


def test_muon_by_hand():
    weight = torch.nn.Parameter(torch.ones(4, 6))
    muon = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    buffer, expected = torch.zeros(4, 6), torch.ones(4, 6)
    for seed in range(3):
        weight.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
        buffer = 0.9 * buffer + 0.1 * weight.grad
        update = orthogonalise(0.1 * weight.grad + 0.9 * buffer) * 0.2 * math.sqrt(6)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * update
        muon.step()
    torch.testing.assert_close(weight.detach(), expected)


def test_muon_leaves_alone_what_has_no_gradient():
    """The matrices of a modality that is not in the data for a while."""
    there, gone = torch.nn.Parameter(torch.ones(4, 6)), torch.nn.Parameter(torch.ones(4, 6))
    muon = Muon([there, gone], lr=0.1, momentum=0.9, weight_decay=0.5)
    for seed in range(5):
        gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
        there.grad, gone.grad = gradient, gradient * (seed in (0, 4))
        before = gone.detach().clone(), there.detach().clone()
        muon.step()
        assert torch.equal(before[0], gone) == (seed in (1, 2, 3)) and not torch.equal(
            before[1], there
        )
    # It continues with the momentum it had.
    first, last = (
        torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 4)
    )
    torch.testing.assert_close(
        muon.state[gone]["momentum_buffer"], 0.9 * (0.1 * first) + 0.1 * last
    )


def test_it_takes_the_matrices_of_the_blocks_alone():
    kind = MuonKind()
    assert kind.takes("blocks.1.attention.q_proj.weight", 2)
    for name, axes in [("blocks.1.norm.weight", 1), ("embedding.weight", 2), ("embed_head", 2)]:
        assert not kind.takes(name, axes), name


def test_its_rate_shrinks_with_the_root_of_the_width():
    kind = MuonKind()
    assert [kind.lr_factor(rule, 0.25) for rule in ("hidden", "output", "input")] == [0.5, 0.5, 1]
    with pytest.raises(AssertionError):
        kind.lr_factor("unknown", 0.25)
