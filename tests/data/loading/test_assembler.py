"""From planned samples to batches: several pictures a sample, pictures of their own size, what was
planned is laid.
"""

import io
import json

import numpy as np
import plans
import pytest
import soundfile
import torch
from PIL import Image

from mmscale import prf
from mmscale.batch import AUDIO, IMAGE, PADDING
from mmscale.config import AugmentConfig, Config, MediaConfig, ModelConfig, SetConfig, TaskConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.index.manifest import Manifest
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.data.loading.assembler import Assembler
from mmscale.data.media import image
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
    plan = plans.make_plan(config, tokenizer)
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
        assert laid == [sequence.tokens for sequence in planned.sequences]
        assert batch.objectives["next_token"]["at_T"].numel() == planned.counts["next_token"]
        assert batch.objectives["contrastive"]["at_T"].numel() == planned.counts["contrastive"]
        assert (
            batch.objectives["next_token"]["weight_T"].sum().item() == pytest.approx(0.5)
            and batch.images_padded
        )
        sizes = batch.image_size_N2
        assert ((sizes[:, 0] // 8) * (sizes[:, 1] // 8)).max() <= 20 and (sizes % 8 == 0).all()
        stems = sum(
            plan.sets[0].measure.sizes(sequence.samples).image_tokens.sum()
            for sequence in planned.sequences
        )
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


@pytest.mark.parametrize(("match", "pairs"), [("", 8), ("key", 4), ("text", 2)])
def test_equal_keys_in_two_shards_are_a_pair_only_when_asked(tmp_path, match, pairs):
    """As img2dataset numbers them: every shard's keys begin at 0."""
    for shard in range(2):
        with ShardWriter(tmp_path, prefix=f"part{shard}") as writer:
            for number in range(4):
                text = f"picture {number % 2}".encode()
                writer.write(f"{number:05d}", {"png": png(9, 9, 4 * shard + number), "txt": text})
    build_index(tmp_path, MEDIA, progress=False)
    task = TaskConfig(objective="contrastive", between=["image", "text"], match=match)
    plan, assembler = make_plan(tmp_path, [task])
    planned = plan.step(0)
    match_T = assembler.batch(planned, planned.sequences).objectives["contrastive"]["match_T"]
    times = sum(len(sequence.samples) for sequence in planned.sequences) / 8
    assert np.unique(match_T, return_counts=True)[1].tolist() == [16 * times / pairs] * pairs


def test_empty_transcripts_alone_in_a_step(tmp_path):
    with ShardWriter(tmp_path) as writer:
        for number in range(6):
            writer.write(f"s{number}", {"wav": wav(2000), "txt": b""})
    build_index(tmp_path, MEDIA, progress=False)
    plan, assembler = make_plan(
        tmp_path, [TaskConfig(objective="ctc", input=["audio"], target="text")]
    )
    step = plan.step(0)
    batch = assembler.batch(step, step.sequences)
    assert not batch.faults and step.counts["ctc"] == 0
    assert (
        len(batch.objectives["ctc"]["length_C"])
        and not batch.objectives["ctc"]["length_C"].any()
        and torch.isfinite(batch.objectives["ctc"]["weight_C"]).all()
    )


def test_trouble_of_the_machine_names_the_sample(shards, monkeypatch):
    plan, assembler = make_plan(shards, [TaskConfig(input=["image.left"], target="text.en")])

    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr(image, "rgb_pixels", refuse)
    with pytest.raises(
        UserError,
        match=r"^sample 'é\d\d': image\.left: decoding a picture: this process has no mem",
    ):
        assembler.batch(plan.step(0), plan.step(0).sequences)


def test_a_broken_sample_leaves_the_blends_of_the_others_alone(tmp_path):
    with ShardWriter(tmp_path) as writer:
        for number in range(20):
            writer.write(
                f"s{number:02d}", {"png": png(20, 20, number), "cls": b"%d" % (number % 3)}
            )
    build_index(tmp_path, MEDIA, progress=False)
    task = TaskConfig(objective="classify", input=["image"], target="cls")

    def blends():
        config = Config(
            media=MEDIA, model=ModelConfig(vocab_size=320, classes={"cls": ["0", "1", "2"]})
        )
        config.data.sets = {
            "s": SetConfig(shards=[str(tmp_path)], tasks=[task], augment=AugmentConfig(mixup=0.8))
        }
        config.data.seq_len, config.data.sequences = 200, 1
        tokenizer = Tokenizer.train(["0 1 2"] * 3, 300)
        plan = plans.make_plan(config, tokenizer)
        step = plan.step(0)
        batch = Assembler(config, plan, tokenizer).batch(step, step.sequences)
        return (
            batch.keys[0],
            batch.faults,
            list(
                zip(
                    batch.objectives["classify"]["class_T2"].tolist(),
                    batch.objectives["classify"]["share_T"].tolist(),
                    batch.image_N3HW,
                    strict=True,
                )
            ),
        )

    keys, faults, before = blends()
    assert not faults and len(keys) > 4
    broken = keys[1]
    manifest = Manifest.open(tmp_path)
    at = (
        int(manifest.column("png")[[manifest.key(n) for n in range(20)].index(broken)]["offset"])
        + 40
    )
    shard = tmp_path / manifest.shards[0]
    raw = bytearray(shard.read_bytes())
    raw[at] ^= 1
    shard.write_bytes(raw)
    same_keys, faults, after = blends()
    assert same_keys == keys and [fault["key"] for fault in faults] == [broken]
    whole = [picture for key, picture in zip(keys, before, strict=True) if key != broken]
    own = [int(key[1:]) % 3 for key in keys if key != broken]
    blended = 0
    for (classes, share, picture), (classes_now, share_now, picture_now), alone in zip(
        whole, after, own, strict=True
    ):
        if classes_now == [alone, alone] and share_now == 1.0:
            continue  # its partner was the broken one, or has its class and was not
        blended += 1
        assert classes == classes_now and share == share_now and torch.equal(picture, picture_now)
    assert blended


def test_an_unknown_name_lists_the_fields_there_are(shards):
    with pytest.raises(
        UserError,
        match=r"no sample has field 'image\.top'; fields there are: en\.txt, json, left\.png",
    ):
        make_plan(shards, [TaskConfig(input=["image.top"], target="text.en")])
