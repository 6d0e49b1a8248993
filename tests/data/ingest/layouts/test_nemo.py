"""NeMo manifests: whole files and parts of files, beside what the manifest itself says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layout_packs import json_of, noise, pack_layout, samples_of, write_sound

from mmscale.data.account import Account
from mmscale.data.ingest.open_layout import find_layout
from mmscale.errors import UserError
from mmscale.registry import LAYOUTS

LAYOUT = LAYOUTS["nemo"]
RATE = 16_000


def write_manifest(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def clips(folder: Path) -> list[dict[str, Any]]:
    """Whole files, one named by an absolute path."""
    rows = []
    for number, ending in enumerate(["wav", "flac", "opus"]):
        name = f"clips/v1.{number}.{ending}"
        write_sound(folder / name, noise(1600, number))
        path = str(folder.absolute() / name) if number == 1 else name
        rows.append(
            {"audio_filepath": path, "duration": 0.1, "text": f"数字 {number}", "speaker": 7}
        )
    return rows


def test_whole_files_are_kept_as_they_are(tmp_path: Path) -> None:
    rows = clips(tmp_path / "corpus")
    manifest = write_manifest(tmp_path / "corpus/train_manifest.json", *rows)
    assert find_layout(manifest, None) is LAYOUT
    packed = pack_layout("nemo", manifest, tmp_path / "out")
    assert packed.keys() == {"train"} and len(packed["train"]) == len(rows)
    for number, (row, ending) in enumerate(zip(rows, ["wav", "flac", "opus"], strict=True)):
        sample = packed["train"][f"clips/v1_{number}"]
        assert sample[ending] == (tmp_path / "corpus" / row["audio_filepath"]).read_bytes()
        assert sample["txt"].decode() == row["text"]
        assert json_of(sample) == {"duration": 0.1, "speaker": 7}


def test_rows_with_an_offset_are_cut(tmp_path: Path) -> None:
    wave = noise(4 * RATE)
    write_sound(tmp_path / "long.wav", wave)
    rows = [
        {"audio_filepath": "long.wav", "offset": 0.5, "duration": 1.25, "text": "a"},
        {"audio_filepath": "long.wav", "offset": 0, "duration": 0.5, "text": "b"},
        {"audio_filepath": "long.wav", "offset": 3, "text": "c"},
    ]
    manifest = write_manifest(tmp_path / "manifest.json", *rows)
    packed = pack_layout("nemo", manifest, tmp_path / "out")[""]
    spans = {
        "long-00000500-00001750": (RATE // 2, RATE * 7 // 4),
        "long-00000000-00000500": (0, RATE // 2),
        "long-00003000-end": (3 * RATE, 4 * RATE),
    }
    assert packed.keys() == spans.keys()
    for (key, (begin, end)), row in zip(spans.items(), rows, strict=True):
        assert np.array_equal(samples_of(packed[key]["flac"]), wave[begin:end])
        assert packed[key]["txt"].decode() == row["text"]
        assert json_of(packed[key])["offset"] == row["offset"]


def test_manifests_of_a_folder_are_splits(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    rows = clips(folder)
    write_manifest(folder / "train_manifest.json", *rows[:2])
    write_manifest(folder / "manifest_dev-clean.jsonl", rows[2])
    (folder / "vocab.txt").write_text("a")
    write_sound(folder / "beside.wav", noise(10))
    assert find_layout(folder, None) is LAYOUT
    account = Account()
    packed = pack_layout("nemo", folder, tmp_path / "out", account)
    assert {split: len(samples) for split, samples in packed.items()} == {
        "train": 2, "dev-clean": 1,
    }  # fmt: skip
    (line,) = account.lines()
    assert line.startswith("1 files beside the clips that are not read (vocab.txt)")
    (folder / "extra.json").write_text('{"a": 1}')
    assert not LAYOUT.matches(folder), "a file of another kind leaves a doubt"
    assert pack_layout("nemo", folder, tmp_path / "again").keys() == packed.keys()


def test_columns_of_other_names_and_absolute_paths(tmp_path: Path) -> None:
    write_sound(tmp_path / "m/a.wav", noise(100))
    row = {"wav": "a.wav", "said": "x", "text": "y", "who": "z"}
    manifest = write_manifest(tmp_path / "m/m.json", row)
    account = Account()
    columns = {"audio": "wav", "text": "said", "label": "who"}
    packed = pack_layout("nemo", manifest, tmp_path / "1", account, columns=columns)[""]
    assert packed["a"]["txt"] == b"x" and json_of(packed["a"]) == {"label": "z"}
    assert account.lines() == [
        "1 columns whose name --text or --label gives to another, left out ('text' of "
        f"{manifest}: row 1); rename them"
    ]
    root = tmp_path / "root"
    write_sound(root / "sub/b.wav", noise(RATE))
    write_manifest(
        manifest,
        {"audio_filepath": f"{root}/sub/b.wav", "offset": 0.5, "text": " "},
        {"audio_filepath": "sub/b.wav"},
    )
    account = Account()
    elsewhere = pack_layout("nemo", manifest, tmp_path / "2", account, root=root)[""]
    assert np.array_equal(samples_of(elsewhere["sub/b-00000500-end"]["flac"]), noise(RATE)[8000:])
    assert elsewhere["sub/b"] == {"wav": (root / "sub/b.wav").read_bytes()}
    assert account.lines() == [
        f"2 clips whose text is empty ({manifest}: row 1, {manifest}: row 2); they are packed "
        "without a txt; correct the table if they have one"
    ]
    with pytest.raises(UserError, match=r"row 1: audio '.*b\.wav from 0\.5.*|lies outside"):
        pack_layout("nemo", manifest, tmp_path / "3")


GOOD = {"audio_filepath": "a.wav", "text": "x", "duration": 0.1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, {"audio_filepath": "gone.wav"}], r"row 2: audio 'gone\.wav': no such file"),
        ([GOOD, GOOD], r"row 2: key 'a' is also that of .*row 1"),
        ([GOOD, {"text": "x"}], r"row 2: audio_filepath is None; write the path"),
        ([GOOD, {"audio_filepath": ["a.wav", "a.wav"]}], r"row 2: audio_filepath is \['a"),
        ([GOOD, GOOD | {"offset": -1}], r"row 2: offset is -1; write seconds"),
        ([GOOD, GOOD | {"offset": 0, "duration": "1"}], r"row 2: duration is '1'; write sec"),
        ([GOOD, GOOD | {"offset": float("nan")}], r"row 2: offset is nan; write seconds"),
        ([GOOD, GOOD | {"offset": 0, "duration": 9}], r"row 2: .*a\.wav: .*recording has 0\.1 s"),
        ([GOOD, GOOD | {"shard_id": 3}], r"row 2: of a tarred data set"),
    ],
)  # fmt: skip
def test_broken_rows_are_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    write_sound(tmp_path / "a.wav", noise(1600))
    manifest = write_manifest(tmp_path / "m.json", *rows)
    with pytest.raises(UserError, match=message):
        pack_layout("nemo", manifest, tmp_path / "out")


def test_broken_lines_and_other_files_are_refused(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", noise(1600))
    manifest = write_manifest(tmp_path / "m.json", GOOD)
    manifest.write_text(manifest.read_text() + '{"audio_filepath": "b.w\n')
    with pytest.raises(UserError, match=r"m\.json: row 2: not JSON"):
        pack_layout("nemo", manifest, tmp_path / "out")
    assert not LAYOUT.matches(write_manifest(tmp_path / "x.json", {"messages": []}))
    assert not LAYOUT.matches(tmp_path / "a.wav")
    with pytest.raises(UserError, match="no manifest with 'audio_filepath' in its first line"):
        pack_layout("nemo", tmp_path / "a.wav", tmp_path / "no")
