"""CTC: the sum over all alignments, with its gradients."""

import itertools

import pytest
import torch

from mmscale.model.objectives.ctc import ctc_loss


def leaf(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def all_alignments(log_probs_PV, target):
    """Log of the summed probability of every path that collapses to ``target`` (blank 0)."""
    positions, vocabulary = log_probs_PV.shape
    paths = []
    for path in itertools.product(range(vocabulary), repeat=positions):
        collapsed = [symbol for symbol, _ in itertools.groupby(path) if symbol != 0]
        if collapsed == target:
            paths.append(sum(log_probs_PV[n, token] for n, token in enumerate(path)))
    return torch.stack(paths).logsumexp(0)


@pytest.mark.parametrize("elements", [1 << 25, 1])
def test_ctc_sums_over_all_alignments(monkeypatch, elements):
    hidden, table = leaf(9, 3), leaf(4, 3, seed=1)
    at = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 7, 0, 0]])
    targets, weights = [[2, 2], [3, 1]], torch.tensor([0.3, 0.7])
    expected = torch.zeros(())
    for row, length, target, weight in zip(at, (5, 3), targets, weights, strict=True):
        log_probs = (hidden[row[:length]] @ table.T).log_softmax(-1)
        expected = expected - weight * all_alignments(log_probs, target)
    expected_grads = torch.autograd.grad(expected, (hidden, table))
    monkeypatch.setattr("mmscale.model.objective._LOGIT_ELEMENTS", elements)
    loss = ctc_loss(
        hidden,
        table,
        at_CP=at,
        tokens_C=torch.tensor([5, 3]),
        target_CU=torch.tensor(targets),
        length_C=torch.tensor([2, 2]),
        weight_C=weights,
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, table)), expected_grads)
