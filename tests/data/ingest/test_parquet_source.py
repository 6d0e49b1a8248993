"""Parquet as a source: every layout of media, nested values, one exact shuffle, bad rows and
columns named.
"""

from __future__ import annotations

import datetime
import decimal
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from indexed import picture, sound
from packed_sets import read_shards as read_all

from mmscale.config import MediaConfig
from mmscale.data.ingest import parquet_source
from mmscale.data.ingest.pack import pack
from mmscale.data.ingest.pack_state import PackState
from mmscale.errors import UserError
from tests.data.ingest.test_pack import checksums, quietly

HUGGING_FACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(
    path: Path, columns: dict[str, Any], types: dict[str, Any] | None = None, group: int = 4
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: pa.array(values, (types or {}).get(name)) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), path, row_group_size=group)
    return path


def numbered(path: Path, count: int, start: int = 0, group: int = 4) -> Path:
    """A table of ``count`` small pictures with a number each."""
    rows = range(start, start + count)
    return write(
        path,
        {"image": [picture(row % 50 + 1, 1) for row in rows], "number": list(rows)},
        group=group,
    )


def numbers(folder: Path) -> list[int]:
    """The numbers of all samples in the order of the shards."""
    return [json.loads(sample["json"])["number"] for sample in read_all(folder).values()]


# -- what rows become
# ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (lambda data: data, pa.binary()),
        (lambda data: data, pa.large_binary()),
        (lambda data: data, pa.dictionary(pa.int32(), pa.binary())),
        (lambda data: {"bytes": data, "path": "wrong.wav"}, HUGGING_FACE),
    ],
)
def test_bytes_in_every_layout(tmp_path: Path, cell: Any, kind: Any) -> None:
    data = picture(3, 2, "WEBP")
    table = write(
        tmp_path / "t.parquet",
        {"image": [cell(data), None]} | {"text": ["a", "b"]},
        {"image": kind},
    )
    quietly(table, tmp_path / "out")
    assert read_all(tmp_path / "out") == {
        "00000001": {"webp": data, "txt": b"a"},
        "00000002": {"txt": b"b"},
    }


def test_paths_and_lists(tmp_path: Path) -> None:
    (tmp_path / "src" / "sub").mkdir(parents=True)
    (tmp_path / "src" / "sub" / "1.png").write_bytes(picture(1, 1))
    clip, photo = sound(100, 8000, "OGG"), picture(5, 5, "JPEG")
    table = write(
        tmp_path / "src" / "t.parquet",
        {
            "key": ["a/1", None],
            "image": [[{"bytes": photo, "path": None}, {"bytes": None, "path": "sub/1.png"}], []],
            "audio": [None, [clip]],
            "text": [["one", "two"], None],
            "cls": [3, None],
        },
        {"image": pa.list_(HUGGING_FACE), "audio": pa.list_(pa.binary())},
    )
    manifest = quietly(table, tmp_path / "out")
    assert read_all(tmp_path / "out") == {
        "a/1": {
            "0.jpg": photo,
            "1.png": picture(1, 1),
            "0.txt": b"one",
            "1.txt": b"two",
            "cls": b"3",
        },
        "00000002": {"0.ogg": clip},
    }
    assert manifest.problem_count == 0


def test_other_columns_become_json(tmp_path: Path) -> None:
    zone = datetime.timezone(datetime.timedelta(hours=8))
    table = write(
        tmp_path / "t.parquet",
        {
            "nested": [{"a": [{"b": 1.5}, None], "c": None}],
            "day": [datetime.date(2024, 2, 29)],
            "at": [datetime.datetime(2024, 2, 29, 12, 30, tzinfo=zone)],
            "nano": [1_709_210_000_123_456_789],
            "time": [datetime.time(1, 2, 3)],
            "length": [datetime.timedelta(seconds=90)],
            "price": [decimal.Decimal("12.30")],
            "flag": [True],
            "missing": [None],
            "nan": [float("nan")],
            "nans": [[1.0, float("nan")]],
            "word": ["数字"],
            "big": [2**63 - 1],
        },
        {
            "nano": pa.timestamp("ns"),
            "missing": pa.string(),
            "word": pa.dictionary(pa.int8(), pa.string()),
        },
    )
    quietly(table, tmp_path / "out")
    assert json.loads(read_all(tmp_path / "out")["00000001"]["json"]) == {
        "nested": {"a": [{"b": 1.5}, None], "c": None},
        "day": "2024-02-29",
        "at": "2024-02-29T12:30:00+08:00",
        "nano": "2024-02-29T12:33:20.123456789",
        "time": "01:02:03",
        "length": 90.0,
        "price": "12.30",
        "flag": True,
        "nans": [1.0, None],
        "word": "数字",
        "big": 2**63 - 1,
    }


def test_a_folder_of_files_with_schemas_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    write(folder / "train-00000.v1.parquet", {"text": ["a", "b"]})
    write(folder / "train-00001.parquet", {"text": ["c"], "label": [7]})
    write(folder / "empty.parquet", {"text": pa.array([], pa.string())})
    write(folder / ".hidden.parquet", {"text": ["never"]})
    quietly(folder, tmp_path / "out")
    assert read_all(tmp_path / "out").keys() == {
        "train-00000_v1/00000001",
        "train-00000_v1/00000002",
        "train-00001/00000001",
    }


# -- order
# -----------------------------------------------------------------------------------------------


def test_shards_are_the_same_for_any_workers_and_row_groups(tmp_path: Path) -> None:
    sources = [numbered(tmp_path / f"{group}" / "t.parquet", 50, group=group) for group in (3, 50)]
    seen = []
    for number, (source, workers) in enumerate([(sources[0], 1), (sources[0], 3), (sources[1], 1)]):
        out = tmp_path / f"out-{number}"
        quietly(source, out, samples_per_shard=7, workers=workers)
        seen.append(checksums(out))
        assert [path.name for path in out.iterdir() if path.suffix != ".tar"] == ["index"]
    assert len(seen[0]) == 8 and seen[0] == seen[1] == seen[2]
    order = numbers(tmp_path / "out-0")
    assert sorted(order) == list(range(50)) and order != list(range(50))


def test_a_larger_source_is_shuffled_in_two_levels(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    for number in range(4):
        numbered(folder / f"{number}.parquet", 20, start=20 * number, group=5)
    # A row group of 5 rows counts as some 11 kB, so a portion is 4 of the 16 groups.
    options = {"shuffle_gb": 50e-6, "samples_per_shard": 8}
    seen = []
    for workers, seed in ((1, 0), (2, 0), (1, 1)):
        out = tmp_path / f"out-{workers}-{seed}"
        quietly(folder, out, workers=workers, shuffle_seed=seed, **options)
        seen.append(numbers(out))
    assert seen[0] == seen[1] != seen[2]
    assert checksums(tmp_path / "out-1-0") == checksums(tmp_path / "out-2-0")
    for order in seen:
        assert sorted(order) == list(range(80))
        portions = [order[first : first + 20] for first in range(0, 80, 20)]
        for portion in portions:
            groups = {number // 5 for number in portion}
            assert len(groups) == 4 and sorted(groups) != list(range(min(groups), min(groups) + 4))
            assert [number // 5 for number in portion] != sorted(number // 5 for number in portion)


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    """One row group of 320 MB, in a process that may not hold it beside what the imports take.

    In pages of a few rows: a page is read whole, however large its writer made it.
    """
    schema = pa.schema([("audio", pa.binary())])
    clip = sound(40_000, 8000)  # 160 kB
    with pq.ParquetWriter(
        tmp_path / "t.parquet", schema, use_dictionary=False, compression="none", write_batch_size=8
    ) as writer:
        writer.write_table(pa.table({"audio": [clip] * 2000}, schema), row_group_size=2000)
    script = (
        "import sys; from pathlib import Path; import pyarrow.parquet, pandas;"
        "from mmscale.data.ingest.pack import pack;"
        "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1e3;"
        "before = peak(); pack(Path(sys.argv[1]), Path(sys.argv[2]), progress=False); print(peak() "
        "- before)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "t.parquet"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200


# -- what is refused
# -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "kind", "words"),
    [
        (
            {"image": b"%PDF-1.4"},
            None,
            r"image of 8 bytes that begin with b'%PDF-1.4' is none of png",
        ),
        ({"image": b""}, None, r"image of 0 bytes"),
        ({"image": sound(10, 8000)}, None, "image is wav, not one of png.*right column"),
        ({"audio": [picture(1, 1)]}, None, "audio 1 of 1 is png"),
        ({"image": bytes(5000)}, None, "image of 5000 bytes are over media.max_file_bytes=4000"),
        ({"image": "../x.png"}, None, r"image '\.\./x\.png': lies outside"),
        ({"image": "no.png"}, None, r"image 'no\.png': no such file"),
        ({"image": {"bytes": None, "path": "/etc/passwd"}}, HUGGING_FACE, "does not end in png"),
        ({"image": [None, "a.png"]}, None, "image 1 of 2 is empty"),
        ({"audio": {"array": [0.5], "path": "x"}}, None, "audio has the part array"),
        ({"text": [["a"]]}, None, "text 1 of 1 is"),
        ({"text": datetime.date(2024, 1, 1)}, None, "text is .*; write a string"),
        ({"x": float("inf")}, None, "column 'x' is infinite"),
        ({"x": None}, pa.int8(), "empty; remove the row"),
        ({"key": "k.1", "text": "a"}, None, "key 'k.1': readers would not give it back"),
        ({"key": "../k", "text": "a"}, None, "key '../k': .*points outside"),
        ({"key": "k", "text": None}, pa.string(), "nothing but a key"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, cells: dict[str, Any], kind: Any, words: str) -> None:
    columns = {"note": ["fine", None]} | {name: [None, value] for name, value in cells.items()}
    table = write(tmp_path / "src" / "t.parquet", columns, dict.fromkeys(cells, kind))
    (tmp_path / "x.png").write_bytes(picture(1, 1))
    with pytest.raises(UserError, match=rf"^{table}: row 2: (.* )?{words}") as caught:
        quietly(table, tmp_path / "out", media=MediaConfig(max_file_bytes=4000))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.binary(), b"x"),
        (pa.binary(1), b"x"),
        (pa.list_(pa.large_binary()), [b"x"]),
        (pa.struct([("a", pa.list_(pa.struct([("b", pa.binary())])))]), {"a": [{"b": b"x"}]}),
        (pa.map_(pa.string(), pa.binary()), [("a", b"x")]),
        (pa.dictionary(pa.int8(), pa.binary()), b"x"),
    ],
)
def test_binary_columns_that_nobody_knows_are_named(tmp_path: Path, kind: Any, value: Any) -> None:
    table = write(tmp_path / "t.parquet", {"text": ["a"], "mask": [value]}, {"mask": kind})
    with pytest.raises(
        UserError, match=r"t\.parquet: column 'mask' holds bytes .*; rename it to image or"
    ):
        quietly(table, tmp_path / "out")


def test_keys_are_unique_over_all_files(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    write(folder / "a.parquet", {"key": ["x", "y", None], "text": ["1", "2", "3"]})
    write(folder / "b.parquet", {"key": ["z", "y"], "text": ["4", "5"]})
    with pytest.raises(
        UserError, match=r"b\.parquet: row 2: key 'y' is also that of .*a\.parquet: row 2;"
    ):
        quietly(folder, tmp_path / "out")
    write(folder / "b.parquet", {"key": ["z", "a/00000003"], "text": ["4", "5"]})
    with pytest.raises(
        UserError, match=r"b\.parquet: row 2: key 'a/00000003' is also that of .*row 3"
    ):
        quietly(folder, tmp_path / "out")
    (folder / "b.parquet").unlink()
    write(folder / "a.v1.parquet", {"text": ["4"]})
    write(folder / "a_v1.parquet", {"text": ["5"]})
    with pytest.raises(
        UserError, match=r"a_v1\.parquet: its rows would have the keys of .*a\.v1\.parquet"
    ):
        quietly(folder, tmp_path / "out")


def test_keys_that_are_missing_count_as_the_number_of_the_row(tmp_path: Path) -> None:
    table = write(
        tmp_path / "t.parquet", {"key": [7.5, float("nan"), None], "text": ["a", "b", "c"]}
    )
    with pytest.raises(UserError, match=r"row 1: key '7\.5': readers would not give it back"):
        quietly(table, tmp_path / "out")
    write(table, {"key": [float("nan"), None], "text": ["a", "b"]}, {"key": pa.float64()})
    quietly(table, tmp_path / "out")
    assert read_all(tmp_path / "out").keys() == {"00000001", "00000002"}


def test_a_file_that_changes_while_packing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = numbered(tmp_path / "t.parquet", 10)
    enter = PackState.__enter__

    def touch_then_enter(state: PackState) -> PackState:
        os.utime(table, (1, 1))
        return enter(state)

    monkeypatch.setattr(PackState, "__enter__", touch_then_enter)
    with pytest.raises(
        UserError, match=rf"{table}: changed while it was packed; give the command again"
    ):
        quietly(table, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_damaged_files_are_named(tmp_path: Path) -> None:
    table = numbered(tmp_path / "t.parquet", 200)
    good = table.read_bytes()
    table.write_bytes(good[:-20])
    with pytest.raises(UserError, match=rf"{table}: cannot be read .*write the file again"):
        quietly(table, tmp_path / "out")
    table.write_bytes(b"PAR1" + bytes(len(good) // 2) + good[4 + len(good) // 2 :])
    with pytest.raises(UserError, match=rf"{table}: row \d+: cannot be read"):
        quietly(table, tmp_path / "out")
    table.write_bytes(b"")
    with pytest.raises(UserError, match=rf"{table}: cannot be read"):
        quietly(table, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    array = pa.array([b"fine", b"\xff\xfe"]).view(pa.string())
    pq.write_table(pa.table({"text": array}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet: row 2: cannot be read \(UnicodeDecodeError"):
        quietly(tmp_path / "t.parquet", tmp_path / "out")


def test_files_outside_the_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "secret.parquet", {"text": ["secret"]})
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "t.parquet").symlink_to(tmp_path / "secret.parquet")
    with pytest.raises(UserError, match=r"t\.parquet: lies outside"):
        quietly(tmp_path / "src", tmp_path / "out")
    quietly(tmp_path / "src" / "t.parquet", tmp_path / "out")  # named by the user
    assert len(read_all(tmp_path / "out")) == 1


def test_two_columns_of_one_name_and_empty_tables(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet: two columns are called 'text'; rename one"):
        quietly(tmp_path / "t.parquet", tmp_path / "out")
    write(tmp_path / "e.parquet", {"text": pa.array([], pa.string())})
    with pytest.raises(UserError, match=r"e\.parquet: holds no samples"):
        quietly(tmp_path / "e.parquet", tmp_path / "out")


def test_without_pyarrow_the_remedy_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = numbered(tmp_path / "t.parquet", 1)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        UserError, match=r"t\.parquet: .*pyarrow, which is missing; run `pip install 'mmscale"
    ):
        quietly(table, tmp_path / "out")


def test_a_bad_row_is_named_alike_for_any_workers(tmp_path: Path) -> None:
    rows = [picture(1, 1)] * 60
    for bad in (50, 30, 10):
        rows[bad] = b"nothing"
    table = write(tmp_path / "t.parquet", {"image": rows}, group=2)
    for workers in (1, 3):
        with pytest.raises(UserError, match=r"t\.parquet: row 11: image"):
            quietly(table, tmp_path / "out", workers=workers)
        assert list((tmp_path / "out").iterdir()) == []


def test_real_pictures_from_parquet_are_those_from_the_folder(
    real_data: Path, tmp_path: Path
) -> None:
    photos = sorted((real_data / "captions").rglob("*.jpg"))[:20]
    table = write(
        tmp_path / "photos.parquet",
        {
            "key": [photo.stem for photo in photos],
            "image": [{"bytes": photo.read_bytes(), "path": photo.name} for photo in photos],
        },
        {"image": HUGGING_FACE},
    )
    manifest = quietly(table, tmp_path / "out")
    assert len(manifest) == len(photos) > 0 and manifest.problem_count == 0
    for photo in photos:
        assert read_all(tmp_path / "out")[photo.stem]["jpg"] == photo.read_bytes()


def test_batches_follow_the_size_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing depends on where batches end."""
    table = numbered(tmp_path / "t.parquet", 30, group=10)
    quietly(table, tmp_path / "one")
    monkeypatch.setattr(parquet_source, "_BATCH_BYTES", 1)
    pack(table, tmp_path / "two", progress=False)
    assert checksums(tmp_path / "one") == checksums(tmp_path / "two")
