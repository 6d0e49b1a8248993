"""Every attention path computes the same thing, and that thing is the rule."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packings import model_config, random_batch

from mmscale.model.attention import (
    SegmentGroup,
    _fused_attention,
    _plain_attention,
    attend,
    make_plan,
    visible,
)


def naive(q, k, v, batch):
    """Softmax attention by the rule, one query at a time."""
    out = torch.zeros_like(q)
    repeat = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2)
    for b in range(q.shape[0]):
        segment, span = batch.segment_BL[b], batch.span_BL[b]
        for i in range(q.shape[1]):
            if segment[i] == 0:
                continue
            seen = [
                j
                for j in range(q.shape[1])
                if segment[j] == segment[i] and (j <= i or (span[i] > 0 and span[i] == span[j]))
            ]
            scores = torch.einsum("hd,jhd->hj", q[b, i], k[b, seen]) / q.shape[-1] ** 0.5
            out[b, i] = torch.einsum("hj,jhd->hd", scores.softmax(-1), v[b, seen])
    return out


def inputs(batch, heads, kv_heads):
    generator = torch.Generator().manual_seed(0)
    shape = batch.segment_BL.shape
    return [
        torch.randn(*shape, count, 8, generator=generator, requires_grad=True)
        for count in (heads, kv_heads, kv_heads)
    ]


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 10_000),
    kinds=st.sampled_from(["t", "i", "a", "tia"]),
    kv_heads=st.sampled_from([1, 2, 4]),
)
def test_paths_agree_with_the_naive_loop_forward_and_backward(seed, kinds, kv_heads):
    batch = random_batch(seed, sequences=2, length=48, kinds=kinds)
    q, k, v = inputs(batch, 4, kv_heads)
    real = (batch.segment_BL > 0)[..., None, None]
    expected = naive(q, k, v, batch)
    gradients = torch.autograd.grad((expected.cos() * real).sum(), (q, k, v))
    for path in ("dense", "grouped"):
        out = attend(q, k, v, make_plan(batch, path))
        torch.testing.assert_close(out * real, expected * real, rtol=1e-4, atol=1e-5)
        own_gradients = torch.autograd.grad((out.cos() * real).sum(), (q, k, v))
        for gradient, expected_gradient in zip(own_gradients, gradients, strict=True):
            torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_agrees_forward():
    batch = random_batch(3, length=256)
    q, k, v = (x.detach() for x in inputs(batch, 4, 2))
    real = (batch.segment_BL > 0)[..., None, None]
    with torch.no_grad():
        flex, dense = (attend(q, k, v, make_plan(batch, path)) for path in ("flex", "dense"))
    torch.testing.assert_close(flex * real, dense * real, rtol=1e-4, atol=1e-5)


def rounding_of_nothing(q, k, v, out_grad):
    """What rounding may leave of the gradients of queries and keys where each query sees one key.

    They are 0: the key's share is 1 whatever its score. They are counted as a difference of two
    equal sums of products, of ``out_grad`` and ``v``, times a key or a query, over as many heads as
    share a key; each sum is wrong by up to epsilon / 2 for each of its products. The norms bound
    all of them.
    """
    width, sharing = q.shape[-1], q.shape[2] // k.shape[2]
    longest = [x.float().norm(dim=-1).max() for x in (q, k, v)]
    terms = out_grad.norm() * longest[2] * max(longest[:2]) / width**0.5 * sharing**0.5
    return torch.finfo(torch.float32).eps * width * terms  # in bfloat16, too, sums are float32


@pytest.mark.parametrize("length", [1, 7, 40, 600])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_the_two_ways_of_a_group_agree(length, masked, heads, kv_heads):
    generator = torch.Generator().manual_seed(length)
    mask = None
    if masked:  # every query sees itself and some others
        mask = torch.rand(3, 1, length, length, generator=generator) < 0.5
        mask |= torch.eye(length, dtype=torch.bool)
    shapes = [(3, length, count, 8) for count in (heads, kv_heads, kv_heads)]
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        qkv = [
            torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes
        ]
        outs = [
            way(*qkv, SegmentGroup((3, length), mask))
            for way in (_plain_attention, _fused_attention)
        ]
        gradients = [torch.autograd.grad(out.float().cos().sum(), qkv) for out in outs]
        unseen = rounding_of_nothing(*qkv, outs[1].float().sin()) if length == 1 else 0
        floors = (0, unseen, unseen, 0)
        for tensor, expected, floor in zip(
            *[(out, *gradient) for out, gradient in zip(outs, gradients, strict=True)],
            floors,
            strict=True,
        ):
            assert tensor.shape == expected.shape and tensor.dtype == dtype
            assert (tensor - expected).norm() <= max(most * expected.norm(), floor), dtype


def test_rule():
    first, second, none = torch.tensor(1), torch.tensor(2), torch.tensor(0)
    yes, no = torch.tensor(True), torch.tensor(False)
    assert visible(first, first, none, none, yes)
    assert not visible(first, first, none, none, no), "text is causal"
    assert visible(first, first, second, second, no), "a span sees its whole self"
    assert not visible(first, first, first, second, no), "two spans do not see ahead"
    assert not visible(first, second, first, first, yes), "never across segments"


def test_a_batch_without_segments_gives_zeros():
    batch = random_batch(1, kinds="t")
    batch.segment_BL.zero_()
    q, k, v = inputs(batch, 4, 2)
    assert not attend(q, k, v, make_plan(batch, "grouped")).any()


def test_padding_waste_is_bounded():
    batch = random_batch(5, sequences=8, length=512)
    plan = make_plan(batch, "grouped")
    slots, padding = len(plan.slot_to_flat), len(plan.slot_padding)
    assert padding < 0.3 * slots
    assert slots - padding == int((batch.segment_BL > 0).sum())
    assert model_config().attention == "auto"
