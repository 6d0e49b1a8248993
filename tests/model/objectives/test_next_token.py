"""Next token: the weighted cross-entropy, in chunks, with its gradients."""

import pytest
import torch
import torch.nn.functional as F

from mmscale.model.objectives.next_token import next_token_loss


def leaf(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("elements", [1 << 25, 90, 1])
def test_next_token_is_the_weighted_cross_entropy_in_any_chunking(monkeypatch, smoothing, elements):
    hidden, table = leaf(10, 8), leaf(30, 8, seed=1)
    target, weight = torch.arange(10) * 2, torch.linspace(0, 1, 10)
    plain = F.cross_entropy(hidden @ table.T, target, reduction="none", label_smoothing=smoothing)
    expected = torch.autograd.grad((plain * weight).sum() * 3, (hidden, table))
    monkeypatch.setattr("mmscale.model.objective._LOGIT_ELEMENTS", elements)
    loss = next_token_loss(hidden, table, target, weight, smoothing)
    torch.testing.assert_close(loss, (plain * weight).sum())
    gradients = torch.autograd.grad(loss * 3, (hidden, table))
    torch.testing.assert_close(gradients, expected)
    assert next_token_loss(hidden[:0], table, target[:0], weight[:0]) == 0


def test_next_token_logits_never_exist_whole():
    """The largest tensor the objective makes, forward or backward, is bounded whatever the number
    of targets.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            made = [
                tensor.numel() for tensor in tree_leaves(out) if isinstance(tensor, torch.Tensor)
            ]
            largest = max(largest, *made, 0) if made else largest
            return out

    vocabulary, targets = 50_000, 4_000
    hidden, table = leaf(targets, 4), leaf(vocabulary, 4)
    with Watch():
        next_token_loss(hidden, table, torch.zeros(targets).long(), torch.ones(targets)).backward()
    assert largest <= 1 << 25 < vocabulary * targets
