"""`Batch`: the only thing the data plane and the model share.

Legend for shape suffixes: B sequences, L positions per sequence, N media items, T tokens of one
kind.
Every index tensor is made on the host when the batch is packed, so a forward pass never asks the
device how many of anything there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PADDING = 0
TEXT = 1
IMAGE = 2
AUDIO = 3

ObjectiveBlock = dict[str, Tensor]

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
    # int64, index of every real audio token among the stem's outputs (see audio_chunks)
    audio_take_T: Tensor
    audio_at_T: Tensor  # int64, flat position of every audio token, in the order of audio_take_T

    dropout_key_B: Tensor  # int64 < 2**31, from (seed, step, sequence)

    # What every objective of the run teaches, by its name: tensors by their names, which its two
    # files know (mmscale/data/objectives, mmscale/model/objectives). Names with ``at_`` are flat
    # positions. A block may be empty, it is never missing.
    objectives: dict[str, ObjectiveBlock] = field(default_factory=dict)
    # Clips (first, last + 1) of like length, and the frames that are read of them, whole tokens;
    # the audio stem gives the tokens of a chunk's clips one after another, chunk after chunk.
    audio_chunks: list[tuple[int, int, int]] = field(default_factory=list)
    images_padded: bool = False  # whether any picture is smaller than image_N3HW
    step: int = 0
    sequences: list[int] = field(default_factory=list)  # positions inside the step
    keys: list[list[str]] = field(default_factory=list)  # sample keys of every sequence
    # Samples masked because they are broken.
    faults: list[dict[str, Any]] = field(default_factory=list)
    samples: int = 0  # samples packed, the masked ones included

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name; those of an objective's block as in ``next_token.at_T``."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return own | {
            f"{objective}.{name}": value
            for objective, block in self.objectives.items()
            for name, value in block.items()
        }

    def plain(self) -> dict[str, Any]:
        """Every field that holds no tensor, by name."""
        return {
            name: value
            for name, value in vars(self).items()
            if name != "objectives" and not isinstance(value, Tensor)
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Batch:
        """The batch with these `tensors` and `plain` fields."""
        own: dict[str, Any] = dict(plain)
        blocks: dict[str, ObjectiveBlock] = {}
        for name, value in tensors.items():
            objective, dot, inner = name.partition(".")
            if dot:
                blocks.setdefault(objective, {})[inner] = value
            else:
                own[name] = value
        return cls(**own, objectives=blocks)

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same with ``change`` of every tensor."""
        return Batch.of(
            {name: change(value) for name, value in self.tensors().items()}, self.plain()
        )

    def with_block(self, objective: str, **changes: Tensor) -> Batch:
        """The same with other tensors in the block of ``objective``, or with more."""
        block = self.objectives.get(objective, {}) | changes
        return dataclasses.replace(self, objectives=self.objectives | {objective: block})

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``; copies overlap with compute when the memory is pinned."""
        return self.with_tensors(lambda value: value.to(device, non_blocking=True))

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
        changed = {}
        for name, value in self.tensors().items():
            if name.endswith(("_BL", "_BL3")):
                value = value[:, :kept].contiguous()
            elif _is_position(name):
                value = value // length * kept + value % length
            changed[name] = value
        return Batch.of(changed, self.plain())

    def pin_memory(self) -> Batch:
        """Called by `torch.utils.data.DataLoader` when it pins memory."""
        return self.with_tensors(Tensor.pin_memory)


def _is_position(name: str) -> bool:
    """Whether a tensor holds flat positions: ``image_at_T``, ``next_token.at_T``."""
    return "_at_" in name or name.partition(".")[2].startswith("at_")
