"""What every audio stem is: clips of like length are encoded together, so that little of the work
is padding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AudioStem(nn.Module):
    """float32 [N, F, M], frames int64 [N] and chunks (see `Batch`) → [T, D], the tokens of all
    chunks in turn.

    The chunks are encoded inside of one call, because strategies gather a stem's weights once a
    call, on every rank.
    """

    def forward(
        self, audio_NFM: Tensor, frames_N: Tensor, chunks: list[tuple[int, int, int]]
    ) -> Tensor:
        return torch.cat(
            [
                self.encode(audio_NFM[first:last, :frames], frames_N[first:last]).flatten(0, 1)
                for first, last, frames in chunks
            ]
        )

    def encode(self, audio_NFM: Tensor, frames_N: Tensor) -> Tensor:
        """Of clips that are padded to whole tokens: [N, F / frames_per_token, D]."""
        raise AssertionError("every stem has its own")
