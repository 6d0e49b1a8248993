"""Classification: the soft cross-entropy of each position's own head."""

import pytest
import torch
import torch.nn.functional as F

from mmscale.model.objectives.classify import classification_loss


def leaf(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_is_the_soft_cross_entropy_of_each_positions_own_head(smoothing):
    logits = [leaf(4, 3), leaf(4, 5, seed=1)]
    head, weight = torch.tensor([1, 0, 1, 1]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    classes, share = (
        torch.tensor([[4, 4], [2, 0], [1, 3], [0, 4]]),
        torch.tensor([1.0, 0.25, 0.5, 0.9]),
    )
    expected = torch.zeros(())
    for row in range(4):
        own = logits[head[row]][row]
        soft = torch.zeros(len(own))
        soft[classes[row, 0]] += share[row]
        soft[classes[row, 1]] += 1 - share[row]
        expected = expected + weight[row] * F.cross_entropy(
            own[None], soft[None], label_smoothing=smoothing
        )
    loss = classification_loss(
        logits, head_T=head, class_T2=classes, share_T=share, weight_T=weight, smoothing=smoothing
    )
    torch.testing.assert_close(loss, expected)
    expected_grads, grads = (
        torch.autograd.grad(value, logits, retain_graph=True) for value in (expected, loss)
    )
    torch.testing.assert_close(grads, expected_grads)
    assert not grads[0][0].any(), "a head is not taught by another's positions"
