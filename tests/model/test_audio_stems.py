"""Clips of different lengths in one batch: what pads them changes nothing. And the names that
checkpoints know the stems by.
"""

import pytest
import torch
from packings import MEDIA, model_config

from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.registry import AUDIO_STEMS

CONV = (
    "convs.0.weight convs.0.bias convs.1.weight convs.1.bias convs.2.weight convs.2.bias "
    "project.weight norm.weight"
)
NAMES = {
    "conv": CONV,
    "rnn": "input_weight state_weight input_bias state_bias input_weight_reverse "
    "state_weight_reverse input_bias_reverse state_bias_reverse "
    + " ".join(f"conv.{name}" for name in CONV.split())
    + " project.weight norm.weight",
}


@pytest.mark.parametrize("stem", NAMES)
def test_checkpoints_know_the_parameters_by_these_names(stem):
    module = AUDIO_STEMS[stem](model_config(), MEDIA)
    assert [name for name, _ in module.named_parameters()] == NAMES[stem].split()


@pytest.mark.parametrize("stem", ["conv", "rnn"])
def test_padding_and_company_do_not_reach_a_clip(stem):
    config = model_config(audio_stem=stem)
    model = FusionTransformer(config, MEDIA)
    initialise(model, config, seed=3)
    frames = [MEDIA.frames_per_token * count - 1 for count in (2, 5, 3)]
    mel = torch.randn(3, 5 * MEDIA.frames_per_token, 20, generator=torch.manual_seed(1))
    for row, count in enumerate(frames):
        mel[row, count:] = 0.0  # what the batch pads with
    longest = mel.shape[1]
    with torch.no_grad():
        together = model.audio_stem(mel, torch.tensor(frames), [(0, 3, longest)]).unflatten(
            0, (3, 5)
        )
        for row, tokens in enumerate((2, 5, 3)):
            own = tokens * MEDIA.frames_per_token
            alone = model.audio_stem(
                mel[row : row + 1, :own], torch.tensor([frames[row]]), [(0, 1, own)]
            )
            torch.testing.assert_close(together[row, :tokens], alone, rtol=1e-4, atol=1e-5)
