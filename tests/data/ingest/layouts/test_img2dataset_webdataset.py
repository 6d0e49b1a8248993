"""Shards need no pack: the command that reads them is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from indexed import SAMPLES, picture, write_shards
from packed_sets import account_of, packed

from mmscale.errors import UserError


def test_the_command_for_shards_is_told(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "src", SAMPLES)
    (folder / "00000_stats.json").write_text("{}")
    (folder / "00000.parquet").write_bytes(b"PAR1")
    shard = sorted(folder.glob("*.tar"))[0]
    for source in (folder, shard):
        with pytest.raises(UserError, match=rf"{source}: .*`mmscale data index {folder}` reads"):
            packed(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tar_beside_pictures_is_a_file_that_is_not_read(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "src", SAMPLES)
    (folder / "cat").mkdir()
    (folder / "cat" / "1.png").write_bytes(picture(1, 1))
    assert "files with endings that are not read (shard-" in account_of(folder, tmp_path / "out")
    assert packed(folder, tmp_path / "out")[""].keys() == {"cat/1"}
