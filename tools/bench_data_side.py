"""One side of `bench_data` in a process of its own: ``python bench_data_side.py SIDE FOLDER [SHARE
OF]``.

The sides are functions of this file, all endless: they read ``FOLDER/pictures`` or
    ``FOLDER/speech``.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import simplejpeg
import soundfile
import soxr
import torch
import webdataset
from bench_data_answer import Amount, answer
from bench_data_shards import SIDE, config_of
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from mmscale import prf
from mmscale.batch import Batch
from mmscale.data.loading.assembler import Assembler
from mmscale.data.loading.loader import MicroBatches, iterate_steps
from mmscale.data.media.augment import CROP_DRAWS, draw_crop
from mmscale.data.media.log_mel import LogMel
from mmscale.data.planning.step_plan import Plan
from mmscale.data.tokenizer import Tokenizer
from mmscale.model.flops import Flops

BATCH = 32
_ENDLESS = 10**6
# open_clip's, which are CLIP's.
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def micro_batches(what: str, folder: Path, kind: type[MicroBatches] = MicroBatches) -> MicroBatches:
    """The pipeline a training run has, one sequence a micro-batch."""
    config = config_of(what, folder)
    tokenizer = Tokenizer.load(config.data.tokenizer.file)
    cost = Flops(config.model, config.media, len(tokenizer)).sequence
    plan = Plan(config, tokenizer, cost=cost)
    return kind(
        plan, Assembler(config, plan, tokenizer), steps=_ENDLESS, micro_batch=1, rank=0, world=1
    )


class NormalisedBatches(MicroBatches):
    """The same with pictures in normalised float32, which training leaves to the device."""

    def __getitem__(self, index: int) -> Batch:
        batch = super().__getitem__(index)
        pixels = batch.image_N3HW.float().sub_(255 * _MEAN).div_(255 * _STD)
        return dataclasses.replace(batch, image_N3HW=pixels)


def amounts(data: MicroBatches, workers: int) -> Iterator[Amount]:
    """What the batches of a run hold."""
    for step in iterate_steps(data, 0, workers=workers, prefetch=4, pin_memory=False):
        for batch in step.batches:
            assert not batch.faults, batch.faults
            seconds = float(batch.audio_frames_N.sum()) / 100  # frames are 10 ms apart
            yield batch.samples, seconds


def mmscale_pictures(folder: Path) -> Callable[[int], Iterator[Amount]]:
    return partial(amounts, micro_batches("pictures", folder))


def mmscale_float(folder: Path) -> Callable[[int], Iterator[Amount]]:
    return partial(amounts, micro_batches("pictures", folder, NormalisedBatches))


def mmscale_speech(folder: Path) -> Callable[[int], Iterator[Amount]]:
    return partial(amounts, micro_batches("speech", folder))


def libjpeg_pictures(
    folder: Path, share: int = 0, of: int = 1
) -> Callable[[int], Iterator[Amount]]:
    """Nothing but the calls of libjpeg-turbo that our pipeline makes in one epoch, of which this is
    one share.
    """
    calls: list[Callable[[], Any]] = []
    decode = simplejpeg.decode_jpeg

    def record(*arguments: Any, **settings: Any) -> Any:
        calls.append(partial(decode, *arguments, **settings))
        return decode(*arguments, **settings)

    data = micro_batches("pictures", folder)
    with mock.patch.object(simplejpeg, "decode_jpeg", record):
        seen, batches = 0, amounts(data, workers=0)
        while seen < _samples(folder / "pictures"):
            seen += next(batches)[0]

    def decoded(workers: int) -> Iterator[Amount]:
        for call in cycle(calls[share::of]):
            call()
            yield 1, 0.0

    return decoded


def webdataset_pictures(folder: Path) -> Callable[[int], Iterator[Amount]]:
    """The `webdataset` library and Pillow: the same crops, bilinear as ours, and the same tokens,
    padded.
    """
    config = config_of("pictures", folder)
    tokenizer, augment = (
        Tokenizer.load(config.data.tokenizer.file),
        config.data.sets["pictures"].augment,
    )

    def read(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(io.BytesIO(sample["jpg"])) as picture:
            numbers = prf.uniform(prf.derive_key(sample["__key__"]), CROP_DRAWS).tolist()
            part = draw_crop(picture.height, picture.width, 1.0, augment, numbers)
            box = (part.left, part.top, part.left + part.width, part.top + part.height)
            small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR, box)
        pixels = torch.from_numpy(np.array(small).transpose(2, 0, 1))
        return pixels, torch.tensor(tokenizer.encode(sample["txt"].decode().strip()))

    def collate(
        samples: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        pictures, texts = zip(*samples, strict=True)
        return torch.stack(pictures), pad_sequence(list(texts), batch_first=True), 0.0

    return partial(_webdataset, folder / "pictures", read, collate)


def webdataset_speech(folder: Path) -> Callable[[int], Iterator[Amount]]:
    """The `webdataset` library and soundfile, with our resampler, spectrogram and tokens,
    padded.
    """
    config = config_of("speech", folder)
    tokenizer, log_mel = Tokenizer.load(config.data.tokenizer.file), LogMel(config.media)

    def read(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        wave, rate = soundfile.read(io.BytesIO(sample["wav"]), dtype="float32", always_2d=True)
        mono = soxr.resample(wave.mean(axis=1), rate, config.media.sample_rate, quality="HQ")
        return torch.from_numpy(log_mel(mono)), torch.tensor(
            tokenizer.encode(sample["txt"].decode())
        )

    def collate(
        samples: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        clips, texts = zip(*samples, strict=True)
        padded = pad_sequence(list(clips), batch_first=True)
        return padded, pad_sequence(list(texts), batch_first=True), sum(map(len, clips)) / 100

    return partial(_webdataset, folder / "speech", read, collate)


def _webdataset(
    shards: Path, read: Callable[..., Any], collate: Callable[..., Any], workers: int
) -> Iterator[Amount]:
    """A shuffled, endless pipeline of the library's own stages and loader."""
    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    stages = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(1000).map(read)
    batches = stages.batched(BATCH, collation_fn=collate).repeat()
    for media, _, seconds in webdataset.WebLoader(batches, batch_size=None, num_workers=workers):
        yield len(media), seconds


def _samples(shards: Path) -> int:
    from mmscale.data.index.manifest import Manifest

    return len(Manifest.open(shards))


def main() -> None:
    torch.set_num_threads(1)
    side, folder, *share = sys.argv[1:]
    sides = {
        function.__name__: function
        for function in (
            mmscale_pictures,
            mmscale_float,
            libjpeg_pictures,
            webdataset_pictures,
            mmscale_speech,
            webdataset_speech,
        )
    }
    packages = ["torch", "pillow", "simplejpeg", "webdataset", "soundfile", "tokenizers"]
    answer(sides[side](Path(folder), *map(int, share)), packages)


if __name__ == "__main__":
    main()
