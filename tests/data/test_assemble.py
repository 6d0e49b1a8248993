"""From planned samples to batches: several pictures a sample, pictures of their own size, what was planned is laid."""

import io
import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmscale import prf
from mmscale.batch import AUDIO, IMAGE, PADDING
from mmscale.config import Config, MediaConfig, ModelConfig, SetConfig, TaskConfig
from mmscale.data.assemble import Assembler
from mmscale.data.index import build_index
from mmscale.data.plan import Plan
from mmscale.data.shard_writer import ShardWriter
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError

MEDIA = MediaConfig(image_patch=8, max_image_tokens=20, mel_bins=20, sample_rate=8000)


def png(width, height, seed):
    draws = prf.uniform(prf.derive_key("png", seed), width * height * 3)
    file = io.BytesIO()
    Image.fromarray((draws * 255).astype(np.uint8).reshape(height, width, 3)).save(file, "PNG")
    return file.getvalue()


def turned_jpeg(width, height):
    """A file of ``width`` x ``height`` that is to be shown turned by 90 degrees."""
    image = Image.new("RGB", (width, height), (200, 30, 30))
    exif = image.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    return file.getvalue()


def wav(samples):
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(samples) / 9) * 0.3, 8000, format="WAV")
    return file.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    draws = prf.Draws(3)
    with ShardWriter(folder) as writer:
        for number in range(40):
            sizes = [draws.integer(4, 90) for _ in range(4)]
            fields = {
                "left.png": png(sizes[0], sizes[1], number),
                "right.jpg": turned_jpeg(sizes[2], sizes[3]),
                "mic.wav": wav(draws.integer(100, 4000)),
                "en.txt": f"picture {number}".encode(),
                "json": json.dumps({"captions": ["one", "two"]}).encode(),
            }
            if number % 5 == 0:
                del fields["right.jpg"]
            writer.write(f"é{number:02d}", fields)
    build_index(folder, MEDIA, progress=False)
    return folder


def make_plan(shards, tasks):
    config = Config(media=MEDIA, model=ModelConfig(vocab_size=320))
    config.data.sets = {"pairs": SetConfig(shards=[str(shards)], tasks=tasks)}
    config.data.seq_len, config.data.sequences = 160, 4
    tokenizer = Tokenizer.train(["picture 0 1 2 3 one two"] * 3, 300)
    plan = Plan(config, tokenizer)
    return plan, Assembler(config, plan, tokenizer)


def test_what_was_planned_is_what_is_laid(shards):
    tasks = [
        TaskConfig(objective="contrastive", between=["image.left", "image.right", "text.en"]),
        TaskConfig(input=["image.left", "audio.mic"], target="json.captions.1", weight=0.5),
    ]
    plan, assembler = make_plan(shards, tasks)
    both = 0
    for step in range(6):
        planned = plan.step(step)
        batch = assembler.batch(planned, planned.sequences)
        assert not batch.faults
        laid = (batch.kind_BL != PADDING).sum(dim=1).tolist()
        assert laid == [one.tokens for one in planned.sequences]
        assert batch.target_at_T.numel() == planned.targets
        assert batch.embed_at_T.numel() == planned.embeddings
        assert batch.target_weight_T.sum().item() == pytest.approx(0.5) and batch.images_padded
        sizes = batch.image_size_N2
        assert ((sizes[:, 0] // 8) * (sizes[:, 1] // 8)).max() <= 20 and (sizes % 8 == 0).all()
        stems = sum(plan.sets[0].measure.sizes(one.samples).image_tokens.sum() for one in planned.sequences)
        assert stems == ((sizes[:, 0] // 8) * (sizes[:, 1] // 8)).sum()
        both += int((batch.kind_BL == AUDIO).any() and (batch.kind_BL == IMAGE).any())
    assert both


def test_the_grid_keeps_the_aspect_ratio_and_turns_with_the_picture():
    height, width = np.meshgrid(np.arange(1, 400, 7), np.arange(1, 400, 11))
    rows, columns = MEDIA.image_grid(height, width)
    turned = MEDIA.image_grid(width, height)
    assert (rows == turned[1]).all() and (columns == turned[0]).all()
    assert (rows * columns <= 20).all() and (rows >= 1).all() and (columns >= 1).all()
    assert (rows * 8 <= np.maximum(height, 8)).all() and (columns * 8 <= np.maximum(width, 8)).all()
    assert MEDIA.image_grid(640, 480) == (5, 3) and MEDIA.image_grid(16, 8) == (2, 1)
    assert MEDIA.image_grid(10, 5000) == (1, 20)
    fixed = MediaConfig(image_height=32, image_width=64, image_patch=16)
    assert fixed.image_grid(7, 9) == (2, 4)


def test_an_unknown_name_lists_the_fields_there_are(shards):
    with pytest.raises(
        UserError, match=r"no sample has field 'image\.top'; fields there are: en\.txt, json, left\.png"
    ):
        make_plan(shards, [TaskConfig(input=["image.top"], target="text.en")])
