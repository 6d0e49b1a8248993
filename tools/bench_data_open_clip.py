"""open_clip's side of `bench_data`: ``PYTHON bench_data_open_clip.py FOLDER``, by an interpreter
that has open_clip.

Its own training preprocessing, tokenizer, shuffle buffers and loader, as its trainer builds them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from bench_data_answer import Amount, answer

BATCH = 32
_ENDLESS = 10**6


def stand_in_for_cuda_operators() -> object | None:
    """Make a torchvision built for CUDA import beside a torch without it; returns what must be kept
    alive.

    Importing it needs the names of two operators of its compiled part, which no picture transform
    uses.
    """
    from importlib.util import find_spec

    spec = find_spec("torchvision")
    assert spec is not None and spec.origin is not None
    try:
        torch.ops.load_library(next(Path(spec.origin).parent.glob("_C*.so")))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


def main() -> None:
    torch.set_num_threads(1)
    kept = stand_in_for_cuda_operators()
    import open_clip
    from open_clip_train.data import get_wds_dataset

    shards = sorted(Path(sys.argv[1], "pictures").glob("*.tar"))
    _, preprocess, _ = open_clip.create_model_and_transforms("ViT-B-32")
    tokenizer = open_clip.get_tokenizer("ViT-B-32")

    def batches(workers: int) -> Iterator[Amount]:
        settings = SimpleNamespace(
            train_data="::".join(map(str, shards)),
            train_num_samples=_ENDLESS,
            train_data_upsampling_factors=None,
            dataset_resampled=False,
            seed=0,
            workers=workers,
            world_size=1,
            batch_size=BATCH,
        )
        for images, _ in get_wds_dataset(
            settings, preprocess, True, tokenizer=tokenizer
        ).dataloader:
            yield len(images), 0.0

    answer(batches, ["open_clip_torch", "torch", "torchvision", "pillow", "webdataset"])
    del kept


if __name__ == "__main__":
    main()
