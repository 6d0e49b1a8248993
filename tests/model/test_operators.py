"""A model computes with the operators it was given, and with nothing else."""

from dataclasses import fields

import pytest
import torch
from packings import MEDIA, model_config, random_batch

from mmscale.model import objective
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.model.objectives import next_token
from mmscale.model.operators import Operators, use_operators


def counted(calls):
    """The usual operators, which note their names when they are called."""

    def noting(name, operator):
        def call(*arguments, **settings):
            calls.append(name)
            return operator(*arguments, **settings)

        return call

    usual = {field.name: getattr(Operators(), field.name) for field in fields(Operators)}
    many = usual.pop("many_logits")
    return Operators(
        **{name: noting(name, operator) for name, operator in usual.items()}, many_logits=many
    )


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        ("transformer", {"make_plan", "attend", "gru", "pack", "unpack"}),
        ("rnn", {"time_major", "gru", "pack", "unpack"}),
    ],
)
def test_every_module_computes_with_them(fusion, expected):
    config, calls = model_config(fusion=fusion, audio_stem="rnn"), []
    model = FusionTransformer(config, MEDIA)
    initialise(model, config, 0)
    other = FusionTransformer(config, MEDIA)
    other.load_state_dict(model.state_dict())
    use_operators(model, counted(calls))
    batch = random_batch(0)
    for name, loss in model(batch).items():
        assert torch.equal(loss, other(batch)[name]), name
    assert set(calls) == expected
    mixers = "attend" if fusion == "transformer" else "gru"
    assert calls.count(mixers) >= config.layers


def test_many_logits_are_a_gpus_number(monkeypatch):
    """Of rows on a CPU four at once instead of one, and the same losses."""
    config = model_config()
    model = FusionTransformer(config, MEDIA)
    initialise(model, config, 0)
    batch, sizes = random_batch(0), []
    monkeypatch.setattr(objective, "_LOGIT_ELEMENTS", config.vocab_size)
    monkeypatch.setattr(
        next_token,
        "rows_at_once",
        lambda *shape: sizes.append(objective.rows_at_once(*shape)) or sizes[-1],
    )
    few = model(batch)
    use_operators(model, Operators(many_logits=True))
    many = model(batch)
    assert sizes == [1, 4]
    for name, loss in few.items():
        torch.testing.assert_close(loss, many[name], rtol=1e-4, atol=1e-5)
