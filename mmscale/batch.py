"""`Batch`: the only thing the data plane and the model share.

Legend for shape suffixes: B sequences, L positions a sequence, N media items, T tokens of one kind,
C clips to transcribe, P audio tokens of the longest of them, U tokens of the longest transcript.
Every index tensor is made on the host when the batch is packed, so a forward pass never asks the
device how many of anything there are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PADDING = 0
TEXT = 1
IMAGE = 2
AUDIO = 3

_TRIM = 128  # positions


@dataclass
class Batch:
    """Packed sequences of one micro-batch.

    A *segment* is a run of positions that attend to each other and to nothing else. Inside a
    segment text is causal; the tokens of one picture or clip (a *span*) see their whole span.
    """

    tokens_BL: Tensor  # int64, text token id; 0 where the position is not text
    kind_BL: Tensor  # uint8, PADDING, TEXT, IMAGE or AUDIO
    segment_BL: Tensor  # int32, number of the segment inside its sequence from 1; 0: padding
    span_BL: Tensor  # int32, number of the media span inside its sequence from 1; 0: not media
    position_BL3: Tensor  # int32, rotary position in (time, row, column)

    text_at_T: Tensor  # int64, flat position (b * L + l) of every text token
    image_N3HW: Tensor  # uint8 pictures, padded to the largest; N may be 0
    image_size_N2: Tensor  # int64, height and width that are real, whole patches
    image_take_T: Tensor  # int64, flat index (n * tokens_per_image + t) of every picture token used
    # int64, flat position (b * L + l) of every picture token, in the order of image_take_T
    image_at_T: Tensor
    audio_NFM: Tensor  # float32 log-mel, the longest first, padded with zeros to it; N may be 0
    audio_frames_N: Tensor  # int64, frames that are real
    audio_take_T: (
        Tensor  # int64, index of every real audio token among the stem's outputs (see audio_chunks)
    )
    audio_at_T: Tensor  # int64, flat position of every audio token, in the order of audio_take_T

    target_at_T: Tensor  # int64, flat position whose output predicts target_T
    target_T: Tensor  # int64, token ids
    target_weight_T: (
        Tensor  # float32, task weight over the step's total of target weight; masked: 0
    )

    embed_at_T: Tensor  # int64, flat position of every <|embed|> token
    embed_slot_T: (
        Tensor  # int64, its place among the embeddings planned for the step, over all ranks
    )
    embed_group_T: Tensor  # int64, embeddings of one group and task are each other's candidates
    embed_task_T: Tensor  # int64, number of the contrastive task, unique over data sets
    embed_side_T: Tensor  # int64, which of the task's fields was embedded
    embed_match_T: Tensor  # int64, equal values belong together
    embed_weight_T: Tensor  # float32, task weight over the step's number of embeddings; masked: 0

    # int64, flat positions of the audio tokens of every clip to transcribe; 0 beyond its end
    ctc_at_CP: Tensor
    ctc_tokens_C: Tensor  # int64, audio tokens of the clip
    ctc_target_CU: Tensor  # int64, token ids of the transcript; 0 beyond its end
    ctc_length_C: Tensor  # int64, tokens of the transcript
    ctc_weight_C: Tensor  # float32, task weight over the step's number of transcript tokens

    class_at_T: Tensor  # int64, flat position of every <|answer|> token that a linear head reads
    class_head_T: Tensor  # int64, number of the head
    class_T2: (
        Tensor  # int64, class of the sample, and of the one mixed into it (equal if there is none)
    )
    class_share_T: Tensor  # float32, share of the first of the two classes
    class_weight_T: Tensor  # float32, task weight over the step's number of classified samples

    dropout_key_B: Tensor  # int64 < 2**31, from (seed, step, sequence)

    # Clips (first, last + 1) of like length, and the frames that are read of them, whole tokens;
    # the audio stem gives the tokens of a chunk's clips one after another, chunk after chunk.
    audio_chunks: list[tuple[int, int, int]] = field(default_factory=list)
    images_padded: bool = False  # whether any picture is smaller than image_N3HW
    step: int = 0
    sequences: list[int] = field(default_factory=list)  # positions inside the step
    keys: list[list[str]] = field(default_factory=list)  # sample keys of every sequence
    faults: list[dict[str, Any]] = field(
        default_factory=list
    )  # samples masked because they are broken
    samples: int = 0  # samples packed, the masked ones included

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if isinstance(getattr(self, item.name), Tensor)
        }

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``; copies overlap with compute when the memory is pinned."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in self.tensors().items()
        }
        return dataclasses.replace(self, **moved)

    def trimmed(self) -> Batch:
        """The same without positions at the end that no sequence uses, in steps of a 32nd of L, 128
        or more.

        In steps, because compiled code is for one length.
        """
        length = self.tokens_BL.shape[1]
        unit = max(_TRIM, length // 32)
        columns = torch.nonzero((self.kind_BL != PADDING).any(0))
        used = int(columns[-1]) + 1 if len(columns) else 1
        kept = -(-used // unit) * unit
        if kept >= length:
            return self
        changed: dict[str, Any] = {}
        for name, value in self.tensors().items():
            if name.endswith(("_BL", "_BL3")):
                changed[name] = value[:, :kept].contiguous()
            elif "_at_" in name:
                changed[name] = value // length * kept + value % length
        return dataclasses.replace(self, **changed)

    def pin_memory(self) -> Batch:
        """Called by `torch.utils.data.DataLoader` when it pins memory."""
        pinned: dict[str, Any] = {
            name: value.pin_memory() for name, value in self.tensors().items()
        }
        return dataclasses.replace(self, **pinned)
