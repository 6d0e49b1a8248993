"""The embedded data set: nothing shared between its splits, labels that match, the same bytes each
time.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmscale.demo import espeak
from mmscale.demo.digits import (
    CAPTIONS,
    SAMPLE_RATE,
    TEST_IMAGES,
    VOICES,
    WORDS,
    build_digits,
    is_complete,
    trim_silence,
)
from mmscale.errors import UserError

pytest.importorskip("espeakng_loader", reason="needs pip install 'mmscale[demo]'")
datasets = pytest.importorskip("sklearn.datasets", reason="needs pip install 'mmscale[demo]'")

SAMPLES = 80

Sample = dict[str, bytes]


def read_shards(directory: Path) -> dict[str, Sample]:
    """Fields by key, from every shard of one split."""
    samples: dict[str, Sample] = {}
    for path in sorted(directory.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, field = member.name.split(".", 1)
                stream = tar.extractfile(member)
                assert stream is not None
                samples.setdefault(key, {})[field] = stream.read()
    return samples


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("digits") / "small"
    build_digits(directory, progress=False, samples=SAMPLES)
    return directory


@pytest.fixture(scope="session")
def splits(built: Path) -> dict[str, dict[str, Sample]]:
    return {split: read_shards(built / split) for split in ("train", "test")}


def facts(samples: dict[str, Sample], name: str) -> set:
    return {json.loads(sample["json"])[name] for sample in samples.values()}


def test_amounts_and_fields(built, splits):
    assert is_complete(built)
    assert len(splits["train"]) == SAMPLES
    assert len(splits["test"]) == SAMPLES // 5
    for samples in splits.values():
        for sample in samples.values():
            assert sorted(sample) == ["flac", "json", "png", "txt"]


def test_no_voice_and_no_image_in_both_splits(splits):
    assert not set(VOICES["train"]) & set(VOICES["test"])
    assert facts(splits["train"], "voice") <= set(VOICES["train"])
    assert facts(splits["test"], "voice") <= set(VOICES["test"])
    assert not facts(splits["train"], "image_index") & facts(splits["test"], "image_index")
    border = 1797 - TEST_IMAGES
    assert (
        max(facts(splits["train"], "image_index"))
        < border
        <= min(facts(splits["test"], "image_index"))
    )


def test_both_languages_in_both_splits(splits):
    for samples in splits.values():
        assert facts(samples, "language") == {"en", "zh"}


def test_labels_match_images_words_and_captions(splits):
    source = datasets.load_digits()
    for samples in splits.values():
        for sample in samples.values():
            recorded = json.loads(sample["json"])
            image = np.asarray(Image.open(io.BytesIO(sample["png"])))
            assert image.dtype == np.uint8 and image.shape == (8, 8)
            assert np.array_equal(np.rint(image / 255 * 16), source.images[recorded["image_index"]])
            assert source.target[recorded["image_index"]] == recorded["digit"]
            assert WORDS["en"][recorded["digit"]] == recorded["label"]
            assert WORDS[recorded["language"]][recorded["digit"]] == recorded["word"]
            meant = {
                template.format(word=recorded["word"], digit=recorded["digit"])
                for template in CAPTIONS[recorded["language"]]
            }
            assert sample["txt"].decode() in meant


def test_clips_are_trimmed_audible_speech(splits):
    for samples in splits.values():
        for sample in samples.values():
            info = soundfile.info(io.BytesIO(sample["flac"]))
            assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, "PCM_16")
            wave, _ = soundfile.read(io.BytesIO(sample["flac"]), dtype="float32")
            assert 0.15 <= len(wave) / SAMPLE_RATE < 1.5
            peak = np.abs(wave).max()
            assert peak > 0.01
            loud = np.flatnonzero(np.abs(wave) > 0.02 * peak)
            assert loud[0] < 0.2 * SAMPLE_RATE and len(wave) - loud[-1] < 0.2 * SAMPLE_RATE


def test_speech_follows_word_and_voice():
    def say(text: str, accent: str, variant: str) -> espeak.Utterance:
        return espeak.Utterance(text, accent, variant, speed=150, pitch=50)

    asked = [say("three", "en-us", "m1"), say("nine", "en-us", "m1"), say("三", "cmn", "f3")]
    first, second = list(espeak.speak(asked)), list(espeak.speak(asked))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({clip.tobytes() for clip in first}) == 3


def test_silence_and_clicks_are_not_clips():
    assert trim_silence(np.zeros(0, np.int16)) is None
    assert trim_silence(np.full(22_050, 20, np.int16)) is None
    click = np.zeros(22_050, np.int16)
    click[10_000:10_100] = 20_000
    assert trim_silence(click) is None


def test_two_builds_give_the_same_bytes(built, tmp_path):
    build_digits(tmp_path / "again", progress=False, samples=SAMPLES)
    shards = sorted(path.relative_to(built) for path in built.rglob("*.tar"))
    assert len(shards) == 2
    for shard in shards:
        assert (tmp_path / "again" / shard).read_bytes() == (built / shard).read_bytes()


def test_a_finished_build_is_left_alone(built):
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    build_digits(built, progress=False, samples=SAMPLES)
    assert before == {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    assert [path.name for path in built.parent.iterdir()] == [built.name]


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="remove it"):
        build_digits(tmp_path, progress=False, samples=SAMPLES)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_the_loser_of_a_race_accepts_the_winners_result(built, tmp_path, monkeypatch):
    target = tmp_path / "raced"
    from mmscale.demo import digits

    plan_split = digits._plan_split

    def finish_first(split, *rest):
        if split == "test":
            monkeypatch.setattr(digits, "_plan_split", plan_split)
            build_digits(target, progress=False, samples=SAMPLES)
        return plan_split(split, *rest)

    monkeypatch.setattr(digits, "_plan_split", finish_first)
    build_digits(target, progress=False, samples=SAMPLES)
    assert is_complete(target)
    assert [path.name for path in tmp_path.iterdir()] == ["raced"]


def test_unknown_voices_are_explained():
    with pytest.raises(UserError, match="variant 'nobody'"):
        list(espeak.speak([espeak.Utterance("one", "en-us", "nobody", 150, 50)]))
    with pytest.raises(UserError, match="voice 'xx-none'"):
        list(espeak.speak([espeak.Utterance("one", "xx-none", "m1", 150, 50)]))


def test_missing_extras_are_explained(tmp_path, monkeypatch):
    monkeypatch.setattr("mmscale.demo.digits.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mmscale\[demo\]"):
        build_digits(tmp_path / "new", progress=False, samples=SAMPLES)
    assert list(tmp_path.iterdir()) == []
