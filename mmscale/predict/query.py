"""What the model is asked: an ordered list of parts, laid out exactly as training lays them out.

The layout of a segment is that of `mmscale.data.planning.sample_sizes`: fields · prompt ·
<|answer|> · answer, or field · <|embed|>. Prediction never augments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmscale.config import MediaConfig, is_media, media_kind
from mmscale.data.index.dataset import Dataset
from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.data.media.audio import decode_audio
from mmscale.data.media.image import decode_image
from mmscale.data.media.log_mel import LogMel
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import SampleFault


@dataclass(frozen=True, eq=False)
class Text:
    """Token ids, int64 [n]."""

    ids: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Picture:
    """Pixels of the one size the model reads, uint8 [3, image_height, image_width]."""

    pixels: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Clip:
    """Log-mel spectrogram, float32 [frames, mel_bins]."""

    mel: NDArray[np.float32]


Part = Text | Picture | Clip
Query = Sequence[Part]


class PartReader:
    """Makes parts from encoded files, from text, and from the fields of a corpus."""

    def __init__(self, media: MediaConfig, tokenizer: Tokenizer) -> None:
        self._media, self._tokenizer = media, tokenizer
        self._mel = LogMel(media)

    def image(self, data: bytes) -> Picture:
        """An encoded picture. Raises `SampleFault` if it cannot be decoded or breaks a limit."""
        return Picture(decode_image(data, self._media))

    def audio(self, data: bytes) -> Clip:
        """An encoded sound. Raises `SampleFault` if it cannot be decoded or breaks a limit."""
        return Clip(self._mel(decode_audio(data, self._media)))

    def text(self, text: str) -> Text:
        """Text; special tokens in it are plain characters."""
        return Text(np.array(self._tokenizer.encode(text), dtype=np.int64))

    def field(self, dataset: Dataset, field: str, sample: int) -> Part | None:
        """One field of a sample; None where its JSON lacks the path. Raises `SampleFault` naming
        it.
        """
        try:
            if is_media(field) and media_kind(field) == "image":
                return self.image(dataset.read(field, sample))
            if is_media(field):
                return self.audio(dataset.read(field, sample))
            text = dataset.text(field, sample)
        except SampleFault as fault:
            raise SampleFault(f"{field}: {str(fault).removeprefix(field + ': ')}") from None
        return None if text is None else self.text(text)

    def query(self, dataset: Dataset, fields: Sequence[str], sample: int) -> list[Part] | None:
        """The fields in order; None where the sample lacks one. Raises `SampleFault` naming the
        field.
        """
        parts: list[Part] = []
        for field in fields:
            part = self.field(dataset, field, sample)
            if part is None:
                return None
            parts.append(part)
        return parts


def count_tokens(query: Query, media: MediaConfig) -> int:
    """Positions the parts take in a sequence."""
    total = 0
    for part in query:
        if isinstance(part, Picture):
            total += (part.pixels.shape[1] // media.image_patch) * (
                part.pixels.shape[2] // media.image_patch
            )
        elif isinstance(part, Clip):
            total += -(-len(part.mel) // media.frames_per_token)
        else:
            total += len(part.ids)
    return total


def lay_query(builder: BatchBuilder, query: Query) -> int:
    """Lay the parts in a new segment of the builder's open sequence.

    Returns the flat position of the last token.
    """
    builder.open_segment()
    last = -1
    for part in query:
        if isinstance(part, Picture):
            last = int(builder.add_image(builder.new_image(part.pixels))[-1])
        elif isinstance(part, Clip):
            last = int(builder.add_clip(builder.new_clip(part.mel))[-1])
        elif len(part.ids):
            last = int(builder.add_text(part.ids)[-1])
    assert last >= 0, "a segment holds something"
    return last
