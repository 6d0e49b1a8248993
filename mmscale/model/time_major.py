"""The order in which a recurrent layer reads the positions of packed segments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class TimeMajor:
    """Positions of all segments by their place in the segment, as
    `torch.nn.utils.rnn.PackedSequence` has them.
    """

    flat: Tensor  # int64 [real positions], flat position b * L + l
    batch_sizes: Tensor  # int64 [longest segment], on the host: segments that are so long
    # int64 [segments], row of `flat` with the last position of each, in the order of the segments
    last: Tensor


def time_major(segment_BL: Tensor) -> TimeMajor:
    """Of a packed batch, from its segment numbers."""
    segment = segment_BL.cpu().numpy()
    batch, length = segment.shape
    change = np.ones((batch, length), dtype=bool)
    change[:, 1:] = segment[:, 1:] != segment[:, :-1]
    starts = np.flatnonzero(change.reshape(-1))
    sizes = np.diff(np.append(starts, batch * length))
    real = segment.reshape(-1)[starts] > 0
    starts, sizes = starts[real], sizes[real]
    order = np.argsort(-sizes, kind="stable")
    longest = int(sizes.max(initial=0))
    batch_sizes = (sizes[:, None] > np.arange(longest)).sum(axis=0)
    rows = [starts[order[:count]] + step for step, count in enumerate(batch_sizes.tolist())]
    flat = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    first_of_step = np.cumsum(batch_sizes) - batch_sizes
    last = np.zeros(len(sizes), np.int64)
    last[order] = first_of_step[sizes[order] - 1] + np.arange(len(order))
    device = segment_BL.device
    return TimeMajor(
        torch.from_numpy(flat).to(device),
        torch.from_numpy(batch_sizes),
        torch.from_numpy(last).to(device),
    )
