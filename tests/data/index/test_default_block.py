"""A block where the user leaves it open: about 4 MB, whatever a sample weighs."""

from types import SimpleNamespace
from typing import Any

import pytest

from mmscale.data.index.default_block import default_block


class Folder:
    def __init__(self, samples: int, size: int) -> None:
        self._samples = samples
        self.entries: list[Any] = [SimpleNamespace(bytes=samples * size)]

    def __len__(self) -> int:
        return self._samples


@pytest.mark.parametrize(
    ("size", "block"),
    [(1, 256), (15_000, 256), (16_000, 128), (100_000, 32), (240_000, 16), (9_000_000, 16)],
)
def test_a_block_has_about_four_megabytes(size: int, block: int) -> None:
    assert default_block([Folder(1000, size), Folder(10, size)]) == block
