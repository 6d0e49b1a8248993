"""What img2dataset writes as files: pictures with captions and json; its failures are told."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from indexed import picture
from packed_sets import account_of, packed

from mmscale.data.ingest.pack import pack
from mmscale.errors import UserError


def download(folder: Path, failed: int = 0) -> Path:
    """Two parts, as img2dataset lays them: a folder, its table and its statistics."""
    for part in ("00000", "00001"):
        (folder / part).mkdir(parents=True)
        rows = []
        for number in range(3):
            key = f"{part}{number:04d}"
            (folder / part / f"{key}.jpg").write_bytes(picture(number + 1, 2, "JPEG"))
            (folder / part / f"{key}.txt").write_text(f"caption {key}")
            rows.append({"url": f"http://x/{key}", "key": key, "status": "success"})
            (folder / part / f"{key}.json").write_text(json.dumps(rows[-1]))
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{part}.parquet")
        stats = {"count": 3 + failed, "successes": 3, "failed_to_download": failed}
        (folder / f"{part}_stats.json").write_text(json.dumps(stats))
    return folder


def test_every_picture_with_its_caption_and_json(tmp_path: Path) -> None:
    source = download(tmp_path / "src")
    sets = packed(source, tmp_path / "out")
    assert sets[""] == {
        path.relative_to(source).with_suffix("").as_posix(): {
            "jpg": path.read_bytes(),
            "json": path.with_suffix(".json").read_bytes(),  # a part's number is no label
            "txt": path.with_suffix(".txt").read_bytes(),
        }
        for path in source.rglob("*.jpg")
    }
    assert len(sets[""]) == 6 and account_of(source, tmp_path / "out") == ""


def test_failures_and_strange_files_are_told(tmp_path: Path) -> None:
    source = download(tmp_path / "src", failed=7)
    (source / "log.bin").write_bytes(b"x")
    told = account_of(source, tmp_path / "out")
    assert "14 pictures that img2dataset could not download (7 of 00000_stats.json" in told
    assert "1 files with endings that are not read (log.bin)" in told
    with pytest.raises(UserError, match=r"^--strict"):
        pack(source, tmp_path / "out", strict=True, progress=False)
