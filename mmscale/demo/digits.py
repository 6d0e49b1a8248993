"""The embedded data set: handwritten digits, spoken digits and captions, in English and Mandarin.

Built by code, so that a fresh clone can train without a download. Nothing in it is copied between
splits:

- pictures are scikit-learn's 1,797 real handwritten digits of 8x8 pixels (Alpaydin and Kaynak,
  "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998). They come
  ordered by writer, so training takes the first block and test the last, and test writers are new;
- clips are synthesised by espeak-ng, which varies accent, voice, speed and pitch. Whole families of
  related voices are kept for test, in every accent and in both languages.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mmscale.config import MediaConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.ingest.pack import ShardWriter
from mmscale.demo import espeak
from mmscale.errors import UserError
from mmscale.prf import Draws, Permutation, derive_key

SPLITS = ("train", "test")
TEST_IMAGES = 300
SAMPLE_RATE = 16_000

WORDS = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "zh": ("零", "一", "二", "三", "四", "五", "六", "七", "八", "九"),
}
CAPTIONS = {
    "en": (
        "a handwritten {word}",
        "the digit {digit} written by hand",
        "a picture of the number {word}",
        "someone wrote the number {digit}",
        "handwriting that reads {word}",
    ),
    "zh": (
        "手写的数字{word}",
        "一张写着{digit}的图片",
        "手写数字{digit}",
        "有人写下了数字{word}",
        "图中的数字是{word}",
    ),
}
# espeak-ng calls British English plain "en".
ACCENTS = {
    "en": (
        "en-us",
        "en-us-nyc",
        "en",
        "en-gb-scotland",
        "en-gb-x-rp",
        "en-gb-x-gbclan",
        "en-gb-x-gbcwmd",
        "en-029",
    ),
    "zh": ("cmn",),
}

# Voice variants of espeak-ng that sound like people; robots, whispers and echo effects are left
# out. Variants on one line share their formants, so a line is never cut between the splits.
VOICES = {
    "train": (
        *("f2", "f5"),
        *("f3", "f4", "belinda", "linda", "aunty"),
        "Andrea",
        *("anika", "Alicia"),
        "shelby",
        *("m1", "m4", "m6"),
        *("m3", "Mike"),
        *("m7", "m8", "Nguyen"),
        *("Diogo", "Henrique", "Hugo", "michel", "miguel"),
        *("Gene", "Gene2"),
        *("Mario", "Michael", "rob", "robert", "quincy", "marcelo", "gustave"),
        *("iven", "iven2", "iven3", "iven4"),
        *("adam", "benjamin", "david", "klatt6", "mike2", "edward", "edward2"),
        *("john", "pedro", "pablo", "antonio", "norbert"),
        *("max", "boris"),
        *("Denis", "victor"),
        "Jacky",
        "ed",
    ),
    "test": (
        "f1",
        *("steph", "steph2", "steph3"),
        "Annie",
        "grandma",
        "m2",
        "m5",
        "Alex",
        "paul",
        "travis",
        "grandpa",
    ),
}
# Words a minute; Mandarin digits are a single short syllable.
SPEEDS = {"en": (110, 200), "zh": (80, 150)}
PITCHES = (35, 65)

_MARGIN_S = 0.05
_SHORTEST_S = 0.15
# Of full scale; quieter clips hold no word. Within a clip, silence is what stays 40 dB below its
# peak.
_SILENT_PEAK = 0.005
_SILENCE_OF_PEAK = 0.01


@dataclass(frozen=True)
class _DigitSample:
    """One sample before anything is drawn or spoken."""

    image_index: int
    digit: int
    language: str
    caption: str
    utterance: espeak.Utterance

    @property
    def key(self) -> str:
        return f"{self.image_index:04d}-{self.language}"


def build_digits(directory: Path, progress: bool = True, samples: int | None = None) -> None:
    """Make ``directory/train`` and ``directory/test`` with shards and index, unless they are there
    already.

    Every picture appears twice, with an English and with a Mandarin clip of its digit: 2,994
    samples for training and 600 for test. Fields: ``png`` 8-bit grey 8x8; ``flac`` mono 16 bit at
    16 kHz; ``txt`` a caption in the clip's language; ``json`` with digit, label (English), word (as
    spoken), language (``en``/``zh``), voice, accent, speed (words a minute), pitch (0-99, 50 is the
    voice's own), image_index.

    ``samples`` limits the training samples, for quick trials; test gets a fifth as many. The result
    is the same, byte for byte, each time. Built beside ``directory`` and renamed, so that a build
    cut short leaves nothing behind and of two processes building at once the first one wins.

    Raises `UserError` when scikit-learn or espeak-ng is missing, or ``directory`` holds something
    else.
    """
    directory = Path(directory)
    if is_complete(directory):
        return
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(
            f"{directory}: holds something else than a finished digits data set; remove it"
        )
    if samples is not None and samples < 5:
        raise UserError(f"samples: {samples} leaves the test split empty; use at least 5")
    images, digits = _load_images()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
        # One level below the scratch folder, whose access rights are private.
        unfinished = Path(scratch) / directory.name
        for split in SPLITS:
            limit = samples if samples is None or split == "train" else samples // 5
            _write_split(
                unfinished / split, split, images, _plan_split(split, digits, limit), progress
            )
        _publish(unfinished, directory)


def is_complete(directory: Path) -> bool:
    """Whether both splits of the data set are there with their indexes."""
    # The name that build_index gives to its folder.
    return all((directory / split / "index").is_dir() for split in SPLITS)


def _publish(unfinished: Path, directory: Path) -> None:
    try:
        unfinished.rename(directory)
    except OSError:
        # Another process was faster. Its result is the same as ours.
        if not is_complete(directory):
            raise
        shutil.rmtree(unfinished)


def _load_images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """uint8 [1797, 8, 8] in 0…255 and the digits, int64 [1797]."""
    if find_spec("sklearn") is None:
        raise UserError("scikit-learn is not installed; run: pip install 'mmscale[demo]'")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 17 levels, 0 to 16.
    return np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64)


def _plan_split(split: str, digits: NDArray[np.int64], limit: int | None) -> list[_DigitSample]:
    """The samples of a split in the order they are written, at most ``limit`` of them."""
    border = len(digits) - TEST_IMAGES
    indices = range(border) if split == "train" else range(border, len(digits))
    plans = [
        _plan_sample(split, index, int(digits[index]), language)
        for index in indices
        for language in WORDS
    ]
    order = Permutation(derive_key("digits", split, "order"), len(plans))
    count = len(plans) if limit is None else min(limit, len(plans))
    return [plans[position] for position in order(np.arange(count))]


def _plan_sample(split: str, image_index: int, digit: int, language: str) -> _DigitSample:
    draws = Draws(derive_key("digits", "sample", image_index, language))

    def pick(choices: Sequence[str]) -> str:
        return choices[draws.integer(0, len(choices))]

    word = WORDS[language][digit]
    utterance = espeak.Utterance(
        text=word,
        accent=pick(ACCENTS[language]),
        variant=pick(VOICES[split]),
        speed=draws.integer(*SPEEDS[language]),
        pitch=draws.integer(*PITCHES),
    )
    caption = pick(CAPTIONS[language]).format(word=word, digit=digit)
    return _DigitSample(image_index, digit, language, caption, utterance)


def _write_split(
    directory: Path,
    split: str,
    images: NDArray[np.uint8],
    plans: list[_DigitSample],
    progress: bool,
) -> None:
    directory.mkdir(parents=True)
    clips = espeak.speak([plan.utterance for plan in plans])
    bar = tqdm(zip(plans, clips, strict=True), f"digits {split}", len(plans), disable=not progress)
    with ShardWriter(directory, prefix="digits", samples_per_shard=500) as writer:
        for plan, clip in bar:
            wave = trim_silence(clip)
            if wave is None:
                continue
            writer.write(
                plan.key,
                {
                    "png": _encode_png(images[plan.image_index]),
                    "flac": _encode_flac(wave),
                    "txt": plan.caption.encode(),
                    "json": _describe(plan),
                },
            )
    build_index(directory, MediaConfig(), progress=False)


def trim_silence(clip: NDArray[np.int16]) -> NDArray[np.int16] | None:
    """Cut int16 [samples] at espeak's rate to the word with 50 ms around it, at `SAMPLE_RATE`.

    None for a clip that is silent or shorter than 0.15 s.
    """
    loudness = np.abs(clip.astype(np.int32))
    peak = int(loudness.max(initial=0))
    if peak < _SILENT_PEAK * 32768:
        return None
    loud = np.flatnonzero(loudness > _SILENCE_OF_PEAK * peak)
    margin = round(_MARGIN_S * espeak.SAMPLE_RATE)
    clip = clip[max(0, loud[0] - margin) : loud[-1] + 1 + margin]
    if len(clip) < _SHORTEST_S * espeak.SAMPLE_RATE:
        return None
    wave = soxr.resample(clip.astype(np.float64), espeak.SAMPLE_RATE, SAMPLE_RATE)
    return np.clip(np.rint(wave), -32768, 32767).astype(np.int16)


def _encode_png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _encode_flac(wave: NDArray[np.int16]) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _describe(plan: _DigitSample) -> bytes:
    utterance = plan.utterance
    facts = {
        "digit": plan.digit,
        "label": WORDS["en"][plan.digit],
        "word": utterance.text,
        "language": plan.language,
        "voice": utterance.variant,
        "accent": "en-gb" if utterance.accent == "en" else utterance.accent,
        "speed": utterance.speed,
        "pitch": utterance.pitch,
        "image_index": plan.image_index,
    }
    return json.dumps(facts, ensure_ascii=False).encode()
