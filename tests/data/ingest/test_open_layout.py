"""The layout is the one that is sure; where several are, the option decides."""

from __future__ import annotations

from pathlib import Path

import pytest
from indexed import picture
from packed_sets import packed

from mmscale.data.ingest.layout import SourceRow, SplitRows
from mmscale.data.ingest.open_layout import find_layout
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS


class Claims:
    """A layout that takes any source to be its own."""

    summary = "a layout of a test"

    def __init__(self, name: str) -> None:
        self.name = name

    def matches(self, source: Path) -> bool:
        return True

    def splits(self, source, options, account):
        rows = [SourceRow("row 1", {"text": self.name}, "k")]
        return {"dev": SplitRows(source, rows), "test": SplitRows(source, rows)}


@pytest.fixture
def two_claims():
    for name in ("claims_a", "claims_b"):
        LAYOUTS.register(name, Claims(name))
    yield
    for name in ("claims_a", "claims_b"):
        LAYOUTS.forget(name)


def test_two_layouts_that_match_are_named(tmp_path: Path, two_claims: None) -> None:
    with pytest.raises(UserError, match="may be claims_a or claims_b; say which with --layout"):
        packed(tmp_path, tmp_path / "out")
    sets = packed(tmp_path, tmp_path / "out", layout="claims_b")
    assert sets == {split: {"k": {"txt": b"claims_b"}} for split in ("dev", "test")}


def test_general_layouts_give_way_to_one_that_is_sure(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(picture(1, 1))
    assert find_layout(tmp_path, None).name == "image_folder"
    LAYOUTS.register("claims_a", Claims("claims_a"))
    try:
        assert find_layout(tmp_path, None).name == "claims_a"
        assert find_layout(tmp_path, "image_folder").name == "image_folder"
    finally:
        LAYOUTS.forget("claims_a")


def test_unknown_layouts_and_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--layout imagefolder: unknown; it is one of .*hf_repos"):
        packed(tmp_path, tmp_path / "out", layout="imagefolder")
    with pytest.raises(UserError, match="no such folder or file"):
        packed(tmp_path / "no", tmp_path / "out")
    (tmp_path / "x.xlsx").write_bytes(b"")
    with pytest.raises(UserError, match="not a kind of source that is read"):
        packed(tmp_path / "x.xlsx", tmp_path / "out", layout="table")


def test_every_layout_of_ours_says_what_it_is() -> None:
    for name, layout in LAYOUTS.all().items():
        assert layout.name == name and len(layout.summary) < 100 and "\n" not in layout.summary
