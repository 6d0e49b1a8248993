"""Pictures of different sizes in one batch: what pads them changes nothing. And the names that
checkpoints know the stems by.
"""

import numpy as np
import pytest
import torch
from packings import MEDIA, model_config

from mmscale import prf
from mmscale.config import MediaConfig
from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.registry import IMAGE_STEMS

SIZES = [(8, 8), (24, 16), (16, 40), (8, 48)]


def picture(height, width, seed=1):
    draws = prf.uniform(prf.derive_key("picture", seed, height, width), 3 * height * width)
    return (draws * 255).astype(np.uint8).reshape(3, height, width)


def make_batch(sizes, rows=1):
    builder = BatchBuilder(rows, 64, MediaConfig(image_patch=8, max_image_tokens=12, mel_bins=20))
    builder.open_sequence()
    for size in sizes:
        builder.open_segment()
        builder.add_image(builder.new_image(picture(*size)))
        builder.add_text([7])
    return builder.finish()


NAMES = {
    "patch": "project.weight project.bias norm.weight",
    "cnn": "first.weight first.bias norms.0.norm.weight norms.1.norm.weight norms.2.norm.weight "
    "norms.3.norm.weight convs.0.weight convs.0.bias convs.1.weight convs.1.bias convs.2.weight "
    "convs.2.bias project.weight project.bias norm.weight",
}


@pytest.mark.parametrize("stem", NAMES)
def test_checkpoints_know_the_parameters_by_these_names(stem):
    module = IMAGE_STEMS[stem](model_config(), MEDIA)
    assert [name for name, _ in module.named_parameters()] == NAMES[stem].split()


@pytest.mark.parametrize("stem", ["patch", "cnn"])
@pytest.mark.parametrize("beside", [255, 0])
def test_padding_does_not_reach_a_picture(stem, beside):
    config = model_config(image_stem=stem)
    model = FusionTransformer(config, MEDIA)
    initialise(model, config, seed=3)
    module = IMAGE_STEMS[stem](config, MEDIA)
    module.load_state_dict(model.image_stem.state_dict())
    padded = np.full((len(SIZES), 3, 24, 48), beside, np.uint8)
    for pixels, size in zip(padded, SIZES, strict=True):
        pixels[:, : size[0], : size[1]] = picture(*size)
    with torch.no_grad():
        together = module(torch.from_numpy(padded), torch.tensor(SIZES)).unflatten(1, (3, 6))
        for row, (height, width) in enumerate(SIZES):
            alone = module(torch.from_numpy(picture(height, width))[None])[0]
            mine = together[row, : height // 8, : width // 8].flatten(0, 1)
            torch.testing.assert_close(mine, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stem", ["patch", "cnn"])
def test_a_model_sees_the_same_picture_in_any_company(stem):
    config = model_config(image_stem=stem)
    media = MediaConfig(image_patch=8, max_image_tokens=12, mel_bins=20)
    model = FusionTransformer(config, media).eval()
    initialise(model, config, seed=3)
    with torch.no_grad():
        together = model.hidden(make_batch(SIZES))[0]
        start = 0
        for height, width in SIZES:
            count = (height // 8) * (width // 8) + 1
            alone = model.hidden(make_batch([(height, width)]))[0, :count]
            torch.testing.assert_close(together[start : start + count], alone, rtol=1e-4, atol=1e-5)
            start += count


def test_positions_count_each_pictures_own_rows_and_columns():
    batch = make_batch([(24, 16), (8, 48)])
    assert batch.images_padded and batch.image_size_N2.tolist() == [[24, 16], [8, 48]]
    first = batch.position_BL3[0, :7].tolist()
    assert first == [[0, r, c] for r in range(3) for c in range(2)] + [[3, 3, 3]]
    second = batch.position_BL3[0, 7:14].tolist()
    assert second == [[0, 0, c] for c in range(6)] + [[6, 6, 6]]
    assert not make_batch([(8, 16), (8, 16)]).images_padded
