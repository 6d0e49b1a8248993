"""Initial weights are decided by names; a name that says nothing is an error."""

import math

import pytest
import torch
from packings import MEDIA, model_config
from torch import nn

from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import draw, initialise

CONFIG = model_config(audio_stem="rnn", image_stem="cnn", classes={"a": ["x", "y"]})


def test_vectors_begin_with_constants_and_matrices_with_their_fan_in():
    model = FusionTransformer(CONFIG, MEDIA)
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    initialise(model, CONFIG, 0)
    for name, parameter in model.named_parameters():
        if name == "contrast_log_scale":
            assert parameter.item() == pytest.approx(math.log(10.0))
        elif name == "contrast_bias":
            assert parameter.item() == -3.0
        elif parameter.dim() == 1:
            assert parameter.eq(1.0 if "norm" in name else 0.0).all(), name
        else:
            assert 0 < parameter.std() < 2 / math.sqrt(math.prod(parameter.shape[1:])), name


def test_a_vector_whose_name_does_not_say_its_value_is_an_error():
    message = r"blocks\.0\.gain: a vector is named norm\.weight \(ones\) or bias \(zeros\)"
    with pytest.raises(AssertionError, match=message):
        draw("blocks.0.gain", torch.empty(4), CONFIG, 0)
