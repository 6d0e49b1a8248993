"""What an index pass goes on after, told: shards without an end marker, samples that stand twice.
`data verify` calls both faults.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from tars import write_tar

from mmscale.config import MediaConfig
from mmscale.data.index.build_index import IndexPass, build_index
from mmscale.data.index.dataset import Dataset
from mmscale.data.index.verify_shards import verify_shards
from mmscale.errors import UserError

MEDIA = MediaConfig()
BLOCK = 512


def write(folder: Path, *names: str) -> Path:
    """A shard whose texts say their own number; of the names, the same may stand twice."""
    folder.mkdir(exist_ok=True)
    path = folder / "s.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = len(f"text {number}")
            archive.addfile(info, io.BytesIO(f"text {number}".encode()))
    return path


def texts(folder: Path) -> dict[str, str | None]:
    dataset = Dataset.open([str(folder)])
    return {dataset.key(sample): dataset.text("text", sample) for sample in range(len(dataset))}


@pytest.mark.parametrize("zeros", [0, BLOCK])
def test_no_end_marker(tmp_path: Path, zeros: int, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "d", "a.txt", "b.txt")
    path.write_bytes(path.read_bytes().rstrip(b"\0").ljust(4 * BLOCK, b"\0") + bytes(zeros))
    assert len(path.read_bytes()) == 4 * BLOCK + zeros
    manifest = build_index(tmp_path / "d", MEDIA, progress=False)
    assert texts(tmp_path / "d") == {"a": "text 0", "b": "text 1"}
    (line,) = manifest.account.lines()
    assert line.startswith("1 shards without an end marker") and "copy it again" in line
    assert any("end marker" in fault for fault in verify_shards(tmp_path / "d"))
    with pytest.raises(UserError, match=r"--strict: .*end marker"):
        build_index(tmp_path / "d", MEDIA, False, IndexPass(strict=True, every=True))


def test_an_end_within_a_member_or_its_padding_is_no_end(tmp_path: Path) -> None:
    path = write(tmp_path / "d", "a.txt", "b.txt")
    whole = path.read_bytes()
    for size in (0, 100, BLOCK, BLOCK + 3, BLOCK + 300, 2 * BLOCK + 7, 3 * BLOCK + 6):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError):
            build_index(tmp_path / "d", MEDIA, progress=False)


@pytest.mark.parametrize("key_dots", ["auto", "first", "last"])
def test_a_sample_twice_keeps_its_first_copy(tmp_path: Path, key_dots: str) -> None:
    write(tmp_path / "d", "a.txt", "b.txt", "a.txt", "c.txt", "c.txt", "b.txt")
    how = IndexPass(key_dots=key_dots)
    manifest = build_index(tmp_path / "d", MEDIA, False, how)
    assert texts(tmp_path / "d") == {"a": "text 0", "b": "text 1", "c": "text 3"}
    (line,) = manifest.account.lines()
    assert line.startswith("3 members of samples that stand twice")
    assert "s.tar: a.txt" in line and "each sample once" in line
    assert any("appears again" in fault for fault in verify_shards(tmp_path / "d"))


def test_members_that_do_not_stand_together_are_refused_still(tmp_path: Path) -> None:
    """The second part of a sample is no second copy: left out, it would be lost."""
    write_tar(tmp_path / "s.tar", {"a.txt": b"1", "b.txt": b"2", "a.cls": b"3"})
    with pytest.raises(UserError, match="key 'a' appears again after other samples"):
        build_index(tmp_path, MEDIA, progress=False)
