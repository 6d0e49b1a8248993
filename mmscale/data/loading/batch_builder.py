"""Laying segments into packed sequences. Training and evaluation build their batches with the same
class.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmscale.batch import AUDIO, IMAGE, TEXT, Batch
from mmscale.config import MediaConfig
from mmscale.registry import OBJECTIVES

# The shortest clip of a chunk lacks at most so much of the longest, or so many tokens.
_CHUNK_SLACK, _CHUNK_LEAST_TOKENS = 0.25, 4


class BatchBuilder:
    """Builds one `Batch`: open a sequence, open a segment, add parts, repeat, finish.

    Args:
        sequences: B, the most sequences the batch holds.
        seq_len: L, positions of each.
        media: sizes of pictures and spectrograms.
    """

    def __init__(self, sequences: int, seq_len: int, media: MediaConfig) -> None:
        shape = (sequences, seq_len)
        self._media, self._length = media, seq_len
        self._tokens = np.zeros(shape, np.int64)
        self._kind = np.zeros(shape, np.uint8)
        self._segment = np.zeros(shape, np.int32)
        self._span = np.zeros(shape, np.int32)
        self._position = np.zeros((*shape, 3), np.int32)
        self._dropout_key = np.zeros(sequences, np.int64)
        self._images: list[NDArray[np.uint8]] = []
        self._clips: list[NDArray[np.float32]] = []
        self._image_use: list[tuple[int, int]] = []  # (picture, first flat position)
        self._clip_use: list[tuple[int, int]] = []
        self._items: dict[str, list[Any]] = {}  # by objective
        self._row = -1
        self._at = self._segments = self._spans = self._clock = 0

    @property
    def room(self) -> int:
        """Positions left in the open sequence."""
        return self._length - self._at

    @property
    def sequence(self) -> int:
        """Number of the open sequence in the batch."""
        return self._row

    def open_sequence(self, dropout_key: int = 0) -> None:
        """Start the next sequence."""
        self._row += 1
        self._at = self._segments = self._spans = self._clock = 0
        self._dropout_key[self._row] = dropout_key

    def open_segment(self) -> None:
        """Start a segment; its positions count from zero."""
        self._segments += 1
        self._clock = 0

    def add_text(self, ids: list[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Add text tokens; returns their flat positions, int64 [n]."""
        count = len(ids)
        at = self._take(count, TEXT, self._clock + np.arange(count)[:, None])
        self._tokens.reshape(-1)[at] = ids
        self._clock += count
        return at

    def new_image(self, image: NDArray[np.uint8]) -> int:
        """Register a picture, uint8 [3, H, W], whole patches; returns its number for
        `add_image`.
        """
        self._images.append(image)
        return len(self._images) - 1

    def add_image(self, number: int) -> NDArray[np.int64]:
        """Add the tokens of a registered picture: time stands still, row and column count from the
        clock.

        Returns their flat positions, int64 [n].
        """
        patch = self._media.image_patch
        rows, columns = (side // patch for side in self._images[number].shape[1:])
        at = self._take(rows * columns, IMAGE, _grid_positions(rows, columns) + self._clock)
        self._image_use.append((number, int(at[0])))
        self._clock += max(rows, columns)
        return at

    def new_clip(self, mel: NDArray[np.float32]) -> int:
        """Register a log-mel spectrogram, float32 [frames, mel_bins]; returns its number."""
        self._clips.append(mel)
        return len(self._clips) - 1

    def add_clip(self, number: int) -> NDArray[np.int64]:
        """Add the tokens of a registered clip; returns their flat positions, int64 [n]."""
        count = self.clip_tokens(number)
        at = self._take(count, AUDIO, self._clock + np.arange(count)[:, None])
        self._clip_use.append((number, int(at[0])))
        self._clock += count
        return at

    def clip_tokens(self, number: int) -> int:
        """Tokens of a registered clip."""
        return int(self._media.tokens_of(len(self._clips[number])))

    def add(self, objective: str, item: Any) -> None:
        """Remember ``item`` for the block of ``objective``, whose module knows what it is."""
        self._items.setdefault(objective, []).append(item)

    def finish(self, **facts: Any) -> Batch:
        """The batch; ``facts`` are its plain fields (step, keys, …)."""
        media = self._media
        images, sizes = self._padded_images()
        columns = images.shape[3] // media.image_patch
        per_image = images.shape[2] // media.image_patch * columns
        image_take, image_at = _uses(
            self._image_use,
            [
                number * per_image + _grid_tokens(height, width, columns)
                for number, (height, width) in enumerate(sizes // media.image_patch)
            ],
        )

        audio, frames, chunks, clip_tokens = self._padded_clips()
        audio_take, audio_at = _uses(self._clip_use, clip_tokens)

        blocks = {
            name: objective.block(self._items.get(name, []))
            for name, objective in OBJECTIVES.all().items()
        }
        return Batch(
            tokens_BL=torch.from_numpy(self._tokens),
            kind_BL=torch.from_numpy(self._kind),
            segment_BL=torch.from_numpy(self._segment),
            span_BL=torch.from_numpy(self._span),
            position_BL3=torch.from_numpy(self._position),
            text_at_T=torch.from_numpy(np.flatnonzero(self._kind == TEXT)),
            image_N3HW=torch.from_numpy(images),
            image_size_N2=torch.from_numpy(sizes),
            image_take_T=torch.from_numpy(image_take),
            image_at_T=torch.from_numpy(image_at),
            audio_NFM=torch.from_numpy(audio),
            audio_frames_N=torch.from_numpy(frames),
            audio_take_T=torch.from_numpy(audio_take),
            audio_at_T=torch.from_numpy(audio_at),
            dropout_key_B=torch.from_numpy(self._dropout_key),
            objectives={
                name: {part: torch.from_numpy(array) for part, array in block.items()}
                for name, block in blocks.items()
            },
            audio_chunks=chunks,
            images_padded=bool((sizes != images.shape[2:]).any()),
            **facts,
        )

    def _padded_images(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """All pictures in one array, padded at the bottom and right, and their heights and widths,
        int64 [N, 2].

        In memory the colours of a pixel lie side by side, as decoders and image kernels have them.
        """
        if not self._images:
            shape = (0, 3, self._media.image_height, self._media.image_width)
            return np.zeros(shape, np.uint8), np.zeros((0, 2), np.int64)
        sizes = np.array([image.shape[1:] for image in self._images], np.int64)
        make = np.empty if (sizes == sizes[0]).all() else np.zeros
        padded = make((len(sizes), *sizes.max(axis=0), 3), np.uint8)
        for canvas, image in zip(padded, self._images, strict=True):
            canvas[: image.shape[1], : image.shape[2]] = image.transpose(1, 2, 0)
        return padded.transpose(0, 3, 1, 2), sizes

    def _padded_clips(
        self,
    ) -> tuple[
        NDArray[np.float32], NDArray[np.int64], list[tuple[int, int, int]], list[NDArray[np.int64]]
    ]:
        """All clips in one array, the longest first; their frames; their chunks; of each registered
        clip, its tokens among those of all chunks."""
        media = self._media
        lengths = np.array([len(clip) for clip in self._clips], np.int64)
        order = np.argsort(-lengths, kind="stable")
        frames = lengths[order]
        # Whole tokens, so that the stems' strides divide the padded length.
        tokens = media.tokens_of(frames)
        audio = np.zeros(
            (len(frames), int(tokens.max(initial=0)) * media.frames_per_token, media.mel_bins),
            np.float32,
        )
        chunks: list[tuple[int, int, int]] = []
        own: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(frames)
        first = filled = 0
        while first < len(frames):
            per_clip = int(tokens[first])
            least = per_clip - max(_CHUNK_LEAST_TOKENS, int(per_clip * _CHUNK_SLACK))
            last = int(np.searchsorted(-tokens, -least, side="right"))
            chunks.append((first, last, per_clip * media.frames_per_token))
            for place in range(first, last):
                clip = int(order[place])
                audio[place, : frames[place]] = self._clips[clip]
                own[clip] = filled + np.arange(int(tokens[place]))
                filled += per_clip
            first = last
        return audio, frames, chunks, own

    def _take(self, count: int, kind: int, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Claim ``count`` places of the open segment for ``position``, [count, 3 or 1]; returns
        them flat.
        """
        assert count <= self.room, "the plan promised that this sample fits"
        places = slice(self._at, self._at + count)
        self._kind[self._row, places] = kind
        self._segment[self._row, places] = self._segments
        self._position[self._row, places] = position
        if kind != TEXT:
            self._spans += 1
            self._span[self._row, places] = self._spans
        self._at += count
        return self._row * self._length + np.arange(places.start, places.stop)


@lru_cache(maxsize=1024)
def _grid_positions(rows: int, columns: int) -> NDArray[np.int64]:
    """(time, row, column) of every token of a picture, from zero: int64 [rows * columns, 3]."""
    grid = np.zeros((rows, columns, 3), np.int64)
    grid[..., 1], grid[..., 2] = np.arange(rows)[:, None], np.arange(columns)
    grid.flags.writeable = False
    return grid.reshape(-1, 3)


def _grid_tokens(rows: int, columns: int, padded_columns: int) -> NDArray[np.int64]:
    """Numbers of a picture's own tokens among those of its padded grid, int64 [rows * columns]."""
    return (np.arange(rows)[:, None] * padded_columns + np.arange(columns)).reshape(-1)


def _uses(
    uses: list[tuple[int, int]], own_tokens: list[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(index into the stem's output, flat position) of every media token in use; both int64 [T]."""
    if not uses:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    take = [own_tokens[number] for number, _ in uses]
    at = [first + np.arange(len(own_tokens[number])) for number, first in uses]
    return np.concatenate(take), np.concatenate(at)
