"""A block has about 4 MB, whatever its samples have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mmscale.data.index.default_block import default_block
from mmscale.data.index.index_files import Shard


class Folder(SimpleNamespace):
    """What `default_block` reads of a manifest."""

    def __len__(self) -> int:
        return sum(shard.samples for shard in self.entries)


def folder(samples: int, size: int) -> Any:
    return Folder(entries=[Shard("a.tar", samples * size, "0" * 64, samples)])


@pytest.mark.parametrize(
    ("size", "block"),
    [
        (1, 256),
        (15_625, 256),
        (15_626, 128),
        (31_250, 128),
        (100_000, 32),
        (250_000, 16),
        (10**9, 16),
    ],
)
def test_the_largest_power_of_two_within_4_mb(size: int, block: int) -> None:
    assert default_block([folder(1000, size)]) == block


def test_folders_count_together() -> None:
    assert default_block([folder(100, 10), folder(100, 62_490)]) == 128
    assert default_block([folder(3, 62_490), folder(900, 10)]) == 256
