"""Contrastive: by hand, and groups that no single pass holds (GradCache)."""

import math

import torch
import torch.nn.functional as F

from mmscale.model.grad_cache import ContrastTerms, StepEmbeddings
from mmscale.model.objectives.contrastive import contrastive_loss


def leaf(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


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
    loss = contrastive_loss(x, torch.tensor([math.log(10)]), torch.tensor([-4.0]), **facts())
    torch.testing.assert_close(loss, expected)


def test_contrastive_terms_found_beforehand_have_the_gradients_of_the_loss_itself():
    x, scale, bias = leaf(6, 4), leaf(1, seed=1), leaf(1, seed=2)
    unit = F.normalize(x, dim=-1)
    loss = contrastive_loss(unit, scale, bias, **facts())
    expected = torch.autograd.grad(loss, (x, scale, bias), retain_graph=True)
    table = StepEmbeddings(
        unit_SE=unit.detach(),
        **{name.replace("_T", "_S"): value for name, value in facts().items()},
    )
    pieces = [table.gradients(rows, scale, bias) for rows in (slice(0, 4), slice(4, 6))]
    terms = ContrastTerms(
        pieces[0][0] + pieces[1][0],
        torch.cat([pieces[0][1], pieces[1][1]]),
        pieces[0][2] + pieces[1][2],
        pieces[0][3] + pieces[1][3],
    )
    surrogate = terms.surrogate(unit, scale, bias)
    torch.testing.assert_close(surrogate, loss)
    torch.testing.assert_close(torch.autograd.grad(surrogate, (x, scale, bias)), expected)


def test_an_embedding_that_is_missing_is_nobodys_candidate():
    x = F.normalize(leaf(6, 4).detach(), dim=-1)
    some = facts()
    some["weight_T"][3] = 0.0
    table = StepEmbeddings(
        unit_SE=x, **{name.replace("_T", "_S"): value for name, value in some.items()}
    )
    scale, bias = torch.tensor([math.log(10)]), torch.tensor([-4.0])
    kept = [0, 1, 2, 4, 5]
    expected = contrastive_loss(
        x[kept], scale, bias, **{name: value[kept] for name, value in facts().items()}
    )
    torch.testing.assert_close(table.gradients(slice(0, 6), scale, bias)[0], expected)
