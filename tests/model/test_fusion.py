"""The model as a whole: independence of neighbours, gradients, initial weights, dropout, losses."""

import math

import pytest
import torch
from packings import MEDIA, add_segment, model_config, random_batch

from mmscale import prf
from mmscale.batch import IMAGE, Batch
from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.model.dropout import depth_factor, keyed_dropout, site_key
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.model.rotary import rotary_angles, rotate

# Every choice of the family appears; stems, fusion and untied weights are independent of each other
# in the code.
STEMS = [
    {"image_stem": "patch", "audio_stem": "conv"},
    {"image_stem": "cnn", "audio_stem": "rnn", "untied": ["feed_forward", "norm"]},
    {"image_stem": "cnn", "audio_stem": "conv", "fusion": "rnn"},
    {
        "image_stem": "patch",
        "audio_stem": "rnn",
        "fusion": "rnn",
        "untied": ["norm", "feed_forward"],
    },
]


def make_model(seed=0, **changes):
    config = model_config(**changes)
    model = FusionTransformer(config, MEDIA)
    initialise(model, config, seed)
    return model


@pytest.mark.parametrize("choices", STEMS, ids=str)
def test_a_segment_does_not_know_its_neighbours(choices):
    """Alone or packed among others, beside longer clips or not, a segment's outputs are the
    same.
    """
    model = make_model(**choices).eval()
    for kind in "tia":
        outputs = []
        for company in (0, 3):
            builder = BatchBuilder(1, 400, MEDIA)
            builder.open_sequence()
            for other in range(company):
                add_segment(builder, "aita"[other], 9, 11, prf.Draws(other))
            start = 400 - builder.room
            add_segment(builder, kind, 6, 5, prf.Draws(99))
            end = 400 - builder.room
            if company:
                add_segment(builder, "a", 7, 14, prf.Draws(7))
            outputs.append(model.hidden(builder.finish())[0, start:end])
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kinds", ["t", "i", "a"])
@pytest.mark.parametrize("choices", STEMS, ids=str)
def test_every_parameter_gets_a_gradient_whatever_the_batch_holds(kinds, choices):
    model = make_model(**choices)
    sum(model(random_batch(1, kinds=kinds)).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        absent = {"i": ("audio",), "a": ("image",), "t": ("image", "audio")}[kinds]
        if any(kind in name for kind in absent):
            assert not parameter.grad.any(), f"{name} saw nothing and must get exactly zero"


@pytest.mark.parametrize("choices", STEMS, ids=str)
def test_every_choice_computes_on_bf16_copies_of_its_parameters(choices):
    """As strategies without shards do: plain tensors stand in for the parameters."""
    model, batch = make_model(**choices), random_batch(1)
    copies = {name: parameter.bfloat16() for name, parameter in model.named_parameters()}
    losses = torch.stack(list(torch.func.functional_call(model, copies, (batch,)).values()))
    expected = torch.stack(list(model(batch).values()))
    torch.testing.assert_close(losses.float(), expected, rtol=0.05, atol=0.01)
    losses.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("kinds", "changes"), [("tia", {}), ("tia", {"fusion": "rnn"}), ("t", {}), ("", {})]
)
def test_padding_at_the_end_can_be_left_away(kinds, changes):
    """The same losses and gradients, with dropout; every index is moved."""
    whole = random_batch(5, sequences=3, length=160, kinds=kinds)
    longer = {}
    for name, value in whole.tensors().items():
        if name.endswith(("_BL", "_BL3")):
            value = torch.nn.functional.pad(value, (0, 0) * (value.ndim - 2) + (0, 340))
        elif "at_" in name.partition(".")[2] or "_at_" in name:
            value = value // 160 * 500 + value % 160
        longer[name] = value
    batch = Batch.of(longer, whole.plain())
    trimmed = batch.trimmed()
    assert trimmed.tokens_BL.shape == (3, 256 if kinds else 128)
    model = make_model(dropout=0.2, **changes).train()
    results = []
    for padded in (batch, trimmed):
        loss = torch.stack(list(model(padded).values()))
        model.zero_grad()
        loss.sum().backward()
        results.append(
            (loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()})
        )
    (loss, gradients), (same_loss, same_gradients) = results
    assert torch.allclose(loss, same_loss, rtol=1e-5, atol=1e-7)
    for name, gradient in gradients.items():
        # Eight epsilons of the largest element: what is small is left of sums over the same
        # positions, whose terms are as large as the large ones' and cancel.
        floor = 1e-6 * max(1.0, gradient.abs().max().item())
        assert torch.allclose(gradient, same_gradients[name], rtol=1e-4, atol=floor), name


def test_image_tokens_lie_where_the_kind_says():
    batch = random_batch(2, kinds="i")
    assert torch.equal(
        torch.nonzero(batch.kind_BL.flatten() == IMAGE)[:, 0], batch.image_at_T.sort().values
    )


def test_initial_weights_depend_on_name_and_seed_only():
    model, same, other = make_model(seed=1), make_model(seed=1), make_model(seed=2)
    deeper = make_model(seed=1, layers=3)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, dict(same.named_parameters())[name])
        if parameter.dim() > 1:
            assert not torch.equal(parameter, dict(other.named_parameters())[name])
    name = "blocks.0.attention.q_proj.weight"
    assert torch.equal(model.get_parameter(name), deeper.get_parameter(name))
    assert model.get_parameter(name).std().item() == pytest.approx(1 / math.sqrt(32), rel=0.1)
    output = model.get_parameter("blocks.0.attention.o_proj.weight").std().item()
    assert output == pytest.approx(1 / math.sqrt(32 * 2 * 2), rel=0.1)


def test_dropout_depends_on_the_sequence_key_alone():
    def dropped(x, keys, site=5):
        return keyed_dropout(x, 0.3, site_key(torch.tensor(keys), site))

    x = torch.ones(2, 50, 40)
    first = dropped(x, [11, 12])
    assert torch.equal(first[1], dropped(x[:1], [12])[0]), "alone or in a batch, the same mask"
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, dropped(x, [11, 12], site=6))
    assert (first == 0).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert first.mean().item() == pytest.approx(1.0, abs=0.05)
    rows = (first[0] == 0).float()
    assert rows.mean(0).std() < 0.12 and rows.mean(1).std() < 0.12, "no stripes"


def test_stochastic_depth_leaves_out_the_stated_share_and_keeps_the_mean():
    factors = depth_factor(0.25, site_key(torch.arange(4000), 3))
    assert (factors == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert factors.mean().item() == pytest.approx(1.0, abs=0.03)
    model = make_model(stochastic_depth=0.9, layers=3).train()
    batch = random_batch(1, kinds="t")
    first = model.hidden(batch)
    assert torch.equal(first, model.hidden(batch)), "a function of the sequence's key"
    assert not torch.equal(first, model.eval().hidden(batch))


def test_rotary_scores_depend_on_distance_only_and_text_is_one_dimensional():
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(a, b):
        turned = [
            rotate(x, *rotary_angles(torch.tensor(p).view(1, 1, 3), 16, 10_000.0))
            for x, p in ((q, a), (k, b))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score([5, 5, 5], [3, 3, 3]), score([12, 12, 12], [10, 10, 10]))
    torch.testing.assert_close(score([4, 6, 9], [4, 2, 3]), score([1, 4, 6], [1, 0, 0]))
    assert not torch.isclose(score([0, 1, 0], [0, 0, 0]), score([0, 0, 1], [0, 0, 0]))


def test_bf16_copies_run_everywhere():
    model = make_model(image_stem="cnn", audio_stem="rnn")
    copies = {name: parameter.bfloat16() for name, parameter in model.named_parameters()}
    batch = random_batch(4)
    rough = torch.func.functional_call(model, copies, (batch,))
    exact = model(batch)
    for name in exact:
        torch.testing.assert_close(rough[name], exact[name], rtol=0.03, atol=0.03)
