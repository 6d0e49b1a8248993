"""Every objective against a plain computation of the same thing, with its gradients."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from mmscale.model.contrast import ContrastTerms, StepEmbeddings
from mmscale.model.objectives import classification_loss, contrastive_loss, ctc_loss, next_token_loss


def leaf(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("elements", [1 << 25, 90, 1])
def test_next_token_is_the_weighted_cross_entropy_in_any_chunking(monkeypatch, smoothing, elements):
    hidden, table = leaf(10, 8), leaf(30, 8, seed=1)
    target, weight = torch.arange(10) * 2, torch.linspace(0, 1, 10)
    plain = F.cross_entropy(hidden @ table.T, target, reduction="none", label_smoothing=smoothing)
    expected = torch.autograd.grad((plain * weight).sum() * 3, (hidden, table))
    monkeypatch.setattr("mmscale.model.objectives._LOGIT_ELEMENTS", elements)
    loss = next_token_loss(hidden, table, target, weight, smoothing)
    torch.testing.assert_close(loss, (plain * weight).sum())
    found = torch.autograd.grad(loss * 3, (hidden, table))
    torch.testing.assert_close(found, expected)
    assert next_token_loss(hidden[:0], table, target[:0], weight[:0]) == 0


def test_next_token_logits_never_exist_whole():
    """The largest tensor the objective makes, forward or backward, is bounded whatever the number of targets."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            made = [one.numel() for one in tree_leaves(out) if isinstance(one, torch.Tensor)]
            largest = max(largest, *made, 0) if made else largest
            return out

    vocabulary, targets = 50_000, 4_000
    hidden, table = leaf(targets, 4), leaf(vocabulary, 4)
    with Watch():
        next_token_loss(hidden, table, torch.zeros(targets).long(), torch.ones(targets)).backward()
    assert largest <= 1 << 25 < vocabulary * targets


def facts():
    return {
        "group_T": torch.tensor([0, 0, 0, 0, 1, 1]),
        "task_T": torch.tensor([0, 0, 0, 0, 0, 1]),
        "side_T": torch.tensor([0, 1, 0, 1, 0, 1]),
        "match_T": torch.tensor([7, 7, 8, 7, 7, 7]),
        "weight_T": torch.full((6,), 0.5),
    }


def test_contrastive_by_hand():
    x = F.normalize(leaf(6, 4).detach(), dim=-1)
    expected = 0.0
    for i, j in ((0, 1), (0, 3), (2, 1), (2, 3)):  # same group, same task, different sides
        sign = 1 if facts()["match_T"][i] == facts()["match_T"][j] else -1
        expected -= 0.5 * F.logsigmoid(sign * (x[i] @ x[j] * 10 - 4))
    found = contrastive_loss(x, torch.tensor([math.log(10)]), torch.tensor([-4.0]), **facts())
    torch.testing.assert_close(found, expected)


def test_contrastive_terms_found_beforehand_have_the_gradients_of_the_loss_itself():
    x, scale, bias = leaf(6, 4), leaf(1, seed=1), leaf(1, seed=2)
    unit = F.normalize(x, dim=-1)
    loss = contrastive_loss(unit, scale, bias, **facts())
    expected = torch.autograd.grad(loss, (x, scale, bias), retain_graph=True)
    table = StepEmbeddings(
        unit.detach(), **{name.replace("_T", "_S"): value for name, value in facts().items()}
    )
    pieces = [table.gradients(rows, scale, bias) for rows in (slice(0, 4), slice(4, 6))]
    terms = ContrastTerms(
        pieces[0][0] + pieces[1][0], torch.cat([pieces[0][1], pieces[1][1]]),
        pieces[0][2] + pieces[1][2], pieces[0][3] + pieces[1][3],
    )  # fmt: skip
    surrogate = terms.surrogate(unit, scale, bias)
    torch.testing.assert_close(surrogate, loss)
    torch.testing.assert_close(torch.autograd.grad(surrogate, (x, scale, bias)), expected)


def test_an_embedding_that_is_missing_is_nobodys_candidate():
    x = F.normalize(leaf(6, 4).detach(), dim=-1)
    some = facts()
    some["weight_T"][3] = 0.0
    table = StepEmbeddings(x, **{name.replace("_T", "_S"): value for name, value in some.items()})
    scale, bias = torch.tensor([math.log(10)]), torch.tensor([-4.0])
    kept = [0, 1, 2, 4, 5]
    expected = contrastive_loss(
        x[kept], scale, bias, **{name: value[kept] for name, value in facts().items()}
    )
    torch.testing.assert_close(table.gradients(slice(0, 6), scale, bias)[0], expected)


def all_alignments(log_probs_PV, target):
    """Log of the summed probability of every path that collapses to ``target`` (blank 0)."""
    positions, vocabulary = log_probs_PV.shape
    paths = []
    for path in itertools.product(range(vocabulary), repeat=positions):
        collapsed = [one for one, _ in itertools.groupby(path) if one != 0]
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
    monkeypatch.setattr("mmscale.model.objectives._LOGIT_ELEMENTS", elements)
    loss = ctc_loss(
        hidden, table, at_CP=at, tokens_C=torch.tensor([5, 3]), target_CU=torch.tensor(targets),
        length_C=torch.tensor([2, 2]), weight_C=weights,
    )  # fmt: skip
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, (hidden, table)), expected_grads)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_is_the_soft_cross_entropy_of_each_positions_own_head(smoothing):
    logits = [leaf(4, 3), leaf(4, 5, seed=1)]
    head, weight = torch.tensor([1, 0, 1, 1]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    classes, share = torch.tensor([[4, 4], [2, 0], [1, 3], [0, 4]]), torch.tensor([1.0, 0.25, 0.5, 0.9])
    expected = torch.zeros(())
    for row in range(4):
        own = logits[head[row]][row]
        soft = torch.zeros(len(own))
        soft[classes[row, 0]] += share[row]
        soft[classes[row, 1]] += 1 - share[row]
        expected = expected + weight[row] * F.cross_entropy(own[None], soft[None], label_smoothing=smoothing)
    found = classification_loss(
        logits, head_T=head, class_T2=classes, share_T=share, weight_T=weight, smoothing=smoothing
    )
    torch.testing.assert_close(found, expected)
    expected_grads, grads = (torch.autograd.grad(one, logits, retain_graph=True) for one in (expected, found))
    torch.testing.assert_close(grads, expected_grads)
    assert not grads[0][0].any(), "a head is not taught by another's positions"
