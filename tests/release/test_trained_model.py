"""Asking a released model: inputs in every form, prompts, and mistakes in one line."""

import io
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from PIL import Image
from small_run import WORDS, save_run, small_config, write_shards

import mmscale
from mmscale.checkpoint.run_folder import load_run
from mmscale.errors import UserError
from mmscale.predict.decoding import Decoding
from mmscale.release.export import export


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_shards(folder / "shards")
    return save_run(small_config(folder / "run", folder / "shards"), steps=(5, 9))


@pytest.fixture(scope="module")
def made(run_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "release"
    return out, export(run_dir, out)


@pytest.fixture
def release(made, tmp_path):
    """A copy to spoil, without the manifest, which would report anything."""
    copy = shutil.copytree(made[0], tmp_path / "release")
    (copy / "manifest.json").unlink()
    return copy


def test_pictures_are_read_alike_however_they_are_held(made, tmp_path):
    model = mmscale.load(made[0])
    pixels = (np.arange(30 * 40 * 3) % 251).astype(np.uint8).reshape(30, 40, 3)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    held = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        image,
        pixels,
    ]
    rows = [
        model.embed(image=form)
        for form in [*held, pixels.transpose(2, 0, 1), image.convert("RGBA")]
    ]
    for row in rows:
        np.testing.assert_array_equal(row, rows[0])
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(pixels)))
    turned.getexif()[0x0112] = 6
    np.testing.assert_array_equal(model.embed(image=turned), rows[0])


def test_sounds_are_read_alike_however_they_are_held(made, tmp_path):
    model = mmscale.load(made[0])
    wave = np.sin(np.arange(4000) * 0.05).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
    rows = [
        model.embed(audio=form)
        for form in (
            tmp_path / "a.wav",
            (tmp_path / "a.wav").read_bytes(),
            (wave, 8000),
            (wave[:, None], 8000),
        )
    ]
    for row in rows:
        np.testing.assert_array_equal(row, rows[0])


def test_classify_answer_and_embed(run_dir, made):
    model = mmscale.load(made[0])
    predictor, _ = load_run(run_dir)
    picture = np.full((16, 24), 99, np.uint8)
    ranked = model.classify(WORDS, image=picture)
    assert sorted(label for label, _ in ranked) == sorted(WORDS)
    assert sum(share for _, share in ranked) == pytest.approx(1.0)
    assert [share for _, share in ranked] == sorted((share for _, share in ranked), reverse=True)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    query = [predictor.reader.image(buffer.getvalue())]
    scores = predictor.label_scores([query], "which", WORDS)[0]  # the prompt it was trained with
    assert ranked[0][0] == WORDS[int(scores.argmax())]
    assert (
        model.describe(picture, max_new_tokens=3)
        == predictor.generate([query], "which", Decoding(max_new_tokens=3))[0]
    )
    assert isinstance(model.transcribe((np.zeros(800, np.float32), 16000), max_new_tokens=2), str)
    assert model.embed(text="one").shape == (16,)


def test_several_trained_prompts_must_be_told_apart(made):
    model = mmscale.load(made[0])
    (small,) = model.config.data.sets.values()
    small.tasks.append(replace(small.tasks[0], prompt="count"))
    picture = np.zeros((8, 8), np.uint8)
    with pytest.raises(UserError, match="'which', 'count'"):
        model.describe(picture)
    assert isinstance(model.describe(picture, prompt="count", max_new_tokens=1), str)


def test_input_that_cannot_be_used_is_one_line(made, tmp_path):
    model = mmscale.load(made[0])
    (tmp_path / "a.png").write_bytes(b"no picture")
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    (tmp_path / "half.png").write_bytes(buffer.getvalue()[:2000])
    cases = [
        (lambda: model.embed(image=tmp_path / "none.png"), r"none\.png: cannot be read"),
        (lambda: model.embed(image=tmp_path / "a.png"), r"a\.png: not a picture"),
        (lambda: model.embed(image=np.zeros((2, 2))), "image: the array is float64"),
        (lambda: model.embed(image=3), "image: got a int"),
        (lambda: model.embed(audio=np.zeros(5)), "audio: got a ndarray"),
        (lambda: model.embed(audio=(np.zeros(5, int), 8000)), "give floats"),
        (lambda: model.embed(audio=(np.zeros(5), 0)), "audio: .*0 Hz"),
        (lambda: model.embed(), "no input"),
        (lambda: model.embed(image=np.zeros((2, 2), np.uint8), text="a"), "one at a time"),
        (lambda: model.classify([], text="a"), "labels: give a list"),
        (lambda: model.classify("ab", text="a"), "labels: give a list"),
        (lambda: model.classify(["a", 5], text="a"), "labels: got a int"),
        (lambda: model.answer(text=5), "text: got a int"),
        (lambda: model.answer(text="\ud800"), r"text: .* is no Unicode text"),
        (lambda: model.answer(text="a", prompt="\ud800"), r"prompt: .* is no Unicode text"),
        (lambda: model.answer(text="a", temperature=math.inf), "temperature=inf"),
        (lambda: model.answer(text="a", temperature=math.nan), "temperature=nan"),
        (lambda: model.answer(text="a", beams=2, length_penalty=math.nan), "length_penalty=nan"),
        (lambda: model.embed(audio=(np.zeros(5), 2**31)), "audio: .* cannot be used"),
        (lambda: model.embed(audio=(np.zeros(5), math.inf)), "audio: .* cannot be used"),
        (
            lambda: model.embed(image=Image.open(tmp_path / "half.png")),
            "image: the picture cannot be read",
        ),
    ]
    for ask, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            ask()
        assert "\n" not in str(caught.value)
