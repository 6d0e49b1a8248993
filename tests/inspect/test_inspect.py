"""The report finds what was planted, says so in plain words, and is the same however it is made."""

from __future__ import annotations

import json
import sys
from html import unescape
from pathlib import Path

import pytest
from conftest import run_module
from planted import encode, picture, planted_report, planted_sets, sample

from mmscale.cli import main
from mmscale.config import MediaConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.ingest.pack import ShardWriter
from mmscale.errors import UserError
from mmscale.inspect.checks import CHECKS
from mmscale.inspect.run import inspect
from mmscale.inspect.table import COLUMNS

SINGLE = {
    "image_broken": "broken",
    "image_blank": "blank",
    "image_tiny": "tiny",
    "audio_silent": "silent",
    "audio_quiet": "quiet",
    "audio_clipped": "clipped",
    "text_empty": "empty",
}
ACROSS = {
    "overlap_image_same": ("same-picture", "t00"),
    "overlap_image_alike": ("like-picture", "t01"),
    "overlap_text_same": ("same-text", "t01"),
    "overlap_text_alike": ("like-text", "t06"),
    "overlap_audio_same": ("same-sound", "t04"),
}


@pytest.fixture(scope="module")
def inspected():
    return planted_report()


@pytest.fixture(scope="module")
def planted():
    return planted_sets()


def example(of: str, key: str) -> dict[str, str]:
    shard = int(key in ("clipped", "empty"))  # the last of the test set
    return {"set": of, "shard": f"shard-{shard:06d}.tar", "key": key}


@pytest.mark.parametrize(("code", "key"), SINGLE.items())
def test_each_planted_fault_is_found_and_no_other(inspected, code, key):
    warning = inspected.warning(code)
    assert warning["count"] == 1
    assert warning["examples"] == [[example("test", key)]]
    assert inspected.result["checks"][code] == {"train": 0, "test": 1}


@pytest.mark.parametrize(("code", "keys"), ACROSS.items())
def test_what_test_shares_with_train_is_found_with_its_partner(inspected, code, keys):
    warning = inspected.warning(code)
    assert warning["count"] == 1
    assert warning["examples"] == [[example("test", keys[0]), example("train", keys[1])]]


def test_warnings_are_plain_sentences_with_the_gravest_first(inspected):
    titles = [warning["title"] for warning in inspected.result["warnings"]]
    assert "1 picture of test is also in train" in titles
    assert "1 text of test differs from one in train in case, spaces or punctuation only" in titles
    assert "1 clip of test is silent" in titles
    order = ["serious", "check", "note"]
    ranks = [order.index(warning["severity"]) for warning in inspected.result["warnings"]]
    assert ranks == sorted(ranks)
    assert all(warning["remedy"] for warning in inspected.result["warnings"])


def test_only_the_planted_kinds_of_warning_appear(inspected):
    codes = {warning["code"] for warning in inspected.result["warnings"]}
    expected = {*SINGLE, *ACROSS, "index_problems", "contradiction_image", "label_unseen"}
    # In test one label stands once, and there are few of the others.
    assert codes - {"label_imbalance"} == expected


def test_the_same_picture_with_two_labels_is_reported(inspected):
    warning = inspected.warning("contradiction_image")
    assert warning["examples"] == [[example("train", "t00"), example("test", "same-picture")]]


def test_the_indexs_own_problems_are_reported(inspected):
    assert inspected.result["sets"][1]["problems"] == 1
    (line,) = inspected.warning("index_problems")["lines"]
    assert "unreadable" in line and "JSON" in line


def test_amounts_are_those_of_the_files(inspected, planted):
    train, test = inspected.result["sets"]
    assert (train["samples"], test["samples"]) == (30, 23)
    assert train["shards"] == 2
    assert train["shard_bytes"] == sum(
        path.stat().st_size for path in (planted / "train").glob("*.tar")
    )
    assert train["pixels"] == 30 * 96 * 80
    assert train["audio_s"] == pytest.approx(30 * 0.4)
    assert train["fields"] == {"json": 30, "png": 30, "txt": 30, "wav": 30}


def test_labels_and_scripts_are_counted_by_set(inspected):
    assert inspected.result["labels"]["json.label"]["cat"]["train"] == 10
    scripts = inspected.result["scripts"]["text"]
    assert {name: counts["train"] for name, counts in scripts.items() if counts["train"]} == {
        "Cyrillic": 6,
        "Han": 6,
        "Hangul": 6,
        "Han + Kana": 6,
        "Latin": 6,
    }


def test_no_check_takes_the_column_of_a_measure():
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert not set(names) & COLUMNS.keys()


def test_the_table_has_a_row_a_sample(inspected):
    pandas = pytest.importorskip("pandas")
    table = pandas.read_parquet(inspected.table)
    assert len(table) == 53
    row = table.set_index(["set", "key"]).loc["test", "broken"]
    assert row["image_broken"] and row["image_fault"] and pandas.isna(row["image_hash"])
    assert table["image_phash"].dropna().astype("uint64").max() > 2**53  # 64 bits survive
    clipped = table.set_index("key").loc["clipped"]
    assert clipped["audio_clipped"] and clipped["audio_clipped_samples"] > 100
    leaked = table[table["image_same"].notna()]
    assert sorted(leaked["key"]) == ["same-picture", "t00"]


@pytest.mark.parametrize(
    ("fields", "number"),
    [
        ({"cls": b"3"}, 4),
        ({"jpg": encode(picture(1, (640, 480)), "JPEG")[:3000]}, 2),
        (sample(1), 1),
        ({"bin": b"read by nothing"}, 1),
        ({"txt": b"\x1b[31mred", "json": b"[1, 2]"}, 1),
    ],
    ids=["labels", "all broken", "one sample", "nothing to read", "no scalars"],
)
def test_sets_of_one_kind_alone_have_a_page_too(tmp_path, fields, number):
    with ShardWriter(tmp_path) as writer:
        for key in range(number):
            writer.write(str(key), fields)
    build_index(tmp_path, MediaConfig(), progress=False)
    html = tmp_path / "r.html"
    result = inspect([str(tmp_path)], html, workers=0, progress=False)
    assert result["sets"][0]["samples"] == number
    assert html.read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_what_the_index_noted_is_shown(tmp_path, capsys):
    with ShardWriter(tmp_path / "shards") as writer:
        for key in range(3):
            writer.write(str(key), {"txt": b"some words", "cls": b"nan", "npy": b"1"})
    account = build_index(tmp_path / "shards", MediaConfig(), progress=False).account
    assert len(account.lines()) == 2
    html = tmp_path / "r.html"
    main(["data", "inspect", str(tmp_path / "shards"), "--html", str(html), "--workers", "0"])
    told, page = capsys.readouterr().out, html.read_text(encoding="utf-8")
    for what, remedy, count, examples in account.as_json():
        assert f"check: The index of shards notes {count} {what}\n" in told
        assert all(text in unescape(page) for text in (what, remedy[1:], *examples))


@pytest.mark.parametrize("workers", [1, 3])
def test_the_page_does_not_depend_on_the_number_of_processes(inspected, planted, tmp_path, workers):
    html = tmp_path / "again.html"
    sources = [str(planted / "train"), str(planted / "test")]
    inspect(sources, html, workers=workers, progress=False)
    assert html.read_bytes() == inspected.html.read_bytes()


def test_another_seed_shows_other_samples(inspected, planted, tmp_path):
    html = tmp_path / "other.html"
    inspect(
        [str(planted / "train"), str(planted / "test")], html, seed=1, workers=0, progress=False
    )
    assert html.read_bytes() != inspected.html.read_bytes()


def test_a_subset_is_drawn_by_a_key_and_reported(planted, tmp_path):
    pandas = pytest.importorskip("pandas")
    drawn = []
    for name in ("a", "b"):
        table = tmp_path / f"{name}.parquet"
        html = tmp_path / f"{name}.html"
        result = inspect(
            [str(planted / "train")], html, sample=7, table=table, workers=0, progress=False
        )
        drawn.append(pandas.read_parquet(table)["key"].tolist())
        assert result["sets"][0]["samples"] == 30 and result["sets"][0]["looked_at"] == 7
        assert "Only 7 of the 30 samples of train were looked at" in html.read_text(
            encoding="utf-8"
        )
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 7


def test_a_shard_that_changed_is_reported_as_broken_not_as_a_crash(planted, tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    for path in (planted / "train").rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(planted / "train")
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    shard = sorted(folder.glob("*.tar"))[0]
    data = bytearray(shard.read_bytes())
    at = data.index(b"IDAT") + 50
    data[at] ^= 0xFF
    shard.write_bytes(data)
    result = inspect([str(folder)], tmp_path / "r.html", workers=0, progress=False)
    assert result["checks"]["image_broken"] == {"train": 1}


def test_folders_of_one_name_are_told_apart_by_their_path(planted, tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        (tmp_path / parent / "train").symlink_to(planted / "train")
    sources = [str(tmp_path / parent / "train") for parent in ("a", "b")]
    result = inspect(sources, tmp_path / "r.html", workers=0, progress=False)
    assert [named_set["name"] for named_set in result["sets"]] == ["a/train", "b/train"]
    (warning,) = [
        warning for warning in result["warnings"] if warning["code"] == "overlap_audio_same"
    ]
    assert warning["count"] == 30


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"names": ["one"]}, "1 names for 2 folders"),
        ({"names": ["one", "one"]}, "given twice"),
        ({"sample": 0}, "--sample 0"),
        ({"html": "absent/r.html"}, "make it first"),
        ({"html": "."}, "a folder"),
    ],
)
def test_bad_requests_are_refused_in_one_line(planted, tmp_path, changes, says):
    html = tmp_path / changes.pop("html", "r.html")
    with pytest.raises(UserError, match=says) as error:
        inspect([str(planted / "train"), str(planted / "test")], html, progress=False, **changes)
    assert "\n" not in str(error.value)


def test_a_folder_without_index_is_refused_with_the_command(tmp_path):
    with pytest.raises(UserError, match="mmscale data index"):
        inspect([str(tmp_path)], tmp_path / "r.html", progress=False)


@pytest.mark.parametrize("module", ["pandas", "pyarrow", "matplotlib"])
def test_a_missing_extra_is_told_with_the_command(planted, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs {module}; run `pip install 'mmscale\[tables\]'`"):
        inspect([str(planted / "train")], tmp_path / "r.html", progress=False)


def test_the_command_prints_one_json_result(planted, tmp_path):
    pytest.importorskip("pandas")
    html = tmp_path / "r.html"
    names = ["--name", "first", "--name", "<second>"]
    folders = [str(planted / "train"), str(planted / "test")]
    done = run_module(
        ["mmscale", "data", "inspect", *folders, "--html", str(html), *names, "--json"]
    )
    result = json.loads(done.stdout)
    assert [named_set["name"] for named_set in result["sets"]] == ["first", "<second>"]
    assert Path(result["html"]) == html
    page = html.read_text(encoding="utf-8")
    assert "&lt;second&gt;" in page and "<second>" not in page
