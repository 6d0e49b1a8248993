"""A stem added from outside is counted, initialised and trained by what it carries itself; an
unknown one is an error everywhere.
"""

from typing import ClassVar

import pytest
import torch
from packings import MEDIA, model_config, random_batch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmscale.config import OptimizerConfig
from mmscale.config_file import config_from_tree
from mmscale.errors import UserError
from mmscale.model.count import count_parameters
from mmscale.model.flops import Flops
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.model.stem import AudioStem, ImageStem, centred_pixels
from mmscale.model.width import initial_factor, rule_of
from mmscale.optim.optimizer import TrainOptimizer
from mmscale.registry import AUDIO_STEMS, IMAGE_STEMS

PATCH = MEDIA.image_patch


class MeanColour(ImageStem):
    """A patch is its mean colour, read by two matrices: one of pixels, one of the model's width."""

    width_rules: ClassVar[dict[str, str]] = {"colour.": "input", "mix.": "hidden"}

    def __init__(self, config, media):
        super().__init__()
        self.colour = nn.Linear(3, config.width)
        self.mix = nn.Linear(config.width, config.width, bias=False)

    def forward(self, image_N3HW, size_N2=None):
        pixels = centred_pixels(image_N3HW, self.colour.weight.dtype)
        colours = nn.functional.avg_pool2d(pixels, PATCH).flatten(2).transpose(1, 2)
        return self.mix(self.colour(colours))

    @staticmethod
    def flops(config, media):
        return 2.0 * config.width * (3 + config.width)


@pytest.fixture
def colour_config():
    IMAGE_STEMS.register("mean_colour", MeanColour)
    yield model_config(image_stem="mean_colour", base_width=16)
    del IMAGE_STEMS._kinds["mean_colour"]


def test_a_stem_from_outside_is_a_choice_of_the_config(colour_config):
    tree = {"model": {"image_stem": "mean_colour"}}
    assert config_from_tree(tree, "here", rules=False).model.image_stem == "mean_colour"


def test_a_stem_from_outside_is_counted(colour_config):
    width = colour_config.width
    weights = 3 * width + width + width**2
    assert count_parameters(colour_config, MEDIA)["image stem"] == weights
    stem = MeanColour(colour_config, MEDIA)
    pictures = torch.zeros(2, 3, 3 * PATCH, PATCH, dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        stem(pictures)
    assert counter.get_total_flops() == 6 * Flops(colour_config, MEDIA, 9).per_image_token


def test_a_stem_from_outside_is_initialised_and_trained(colour_config):
    model = FusionTransformer(colour_config, MEDIA)
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    initialise(model, colour_config, 0)
    stem = model.image_stem
    assert stem.colour.bias.eq(0).all()
    width = colour_config.width
    assert stem.mix.weight.std().item() == pytest.approx(width**-0.5, rel=0.1)
    optimizer = TrainOptimizer(model, OptimizerConfig(lr=1.0), colour_config)
    rates = {
        id(parameter): group["lr"]
        for group in optimizer._inner["adamw"].param_groups
        for parameter in group["params"]
    }
    assert rates[id(stem.mix.weight)] == 16 / width and rates[id(stem.colour.weight)] == 1.0
    before = stem.mix.weight.detach().clone()
    optimizer.set_learning_rate(0.01)
    sum(model(random_batch(1)).values()).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in stem.parameters())
    optimizer.step()
    assert not torch.equal(before, stem.mix.weight)


def test_a_parameter_that_a_stem_gave_no_rule_is_an_error(colour_config):
    model = FusionTransformer(colour_config, MEDIA)
    model.image_stem.second = nn.Linear(4, 4, bias=False)
    message = r"image_stem\.second\.weight: has no width rule; .* MeanColour\.width_rules"
    with pytest.raises(AssertionError, match=message):
        initialise(model, colour_config, 0)
    with pytest.raises(AssertionError, match=message):
        TrainOptimizer(model, OptimizerConfig(), colour_config)


def test_a_rule_that_there_is_not_is_an_error(colour_config, monkeypatch):
    monkeypatch.setattr(MeanColour, "width_rules", {"mix.": "hiden"})
    with pytest.raises(AssertionError, match="'hiden' is none of hidden, output, input"):
        rule_of("image_stem.mix.weight", 2, colour_config)


def test_the_longest_name_counts(colour_config, monkeypatch):
    rules = {"": "output", "mix.weight": "hidden", "mix.": "input"}
    monkeypatch.setattr(MeanColour, "width_rules", rules)
    assert rule_of("image_stem.mix.weight", 2, colour_config) == "hidden"
    assert rule_of("image_stem.mix.other", 2, colour_config) == "input"
    assert rule_of("image_stem.colour.weight", 2, colour_config) == "output"


@pytest.mark.parametrize("base", [ImageStem, AudioStem])
def test_a_stem_that_does_not_know_its_cost_is_an_error(base):
    class Free(base):
        pass

    with pytest.raises(AssertionError, match="Free has no flops; add its operations"):
        Free.flops(model_config(), MEDIA)


@pytest.mark.parametrize(
    ("key", "names"),
    [("image_stem", "'cnn', 'patch', 'pretrained'"), ("audio_stem", "'conv', 'pretrained', 'rnn'")],
)
def test_an_unknown_stem_is_an_error_everywhere(key, names):
    with pytest.raises(UserError, match=rf"model\.{key}: 'vit' is not one of {names}"):
        config_from_tree({"model": {key: "vit"}}, "here")
    config = model_config(**{key: "vit"})
    message = f"no {key.replace('_', ' ')} is named 'vit'"
    with pytest.raises(AssertionError, match=message):
        FusionTransformer(config, MEDIA)
    with pytest.raises(AssertionError, match=message):
        Flops(config, MEDIA, 9)
    for look_up in (rule_of, initial_factor):
        with pytest.raises(AssertionError, match=message):
            look_up(f"{key}.project.weight", 2, config)


def test_every_stem_of_ours_carries_what_a_stem_must():
    for registry, base in ((IMAGE_STEMS, ImageStem), (AUDIO_STEMS, AudioStem)):
        for name, kind in registry.all().items():
            assert issubclass(kind, base) and kind.width_rules, name
            assert kind.flops is not base.flops, name
