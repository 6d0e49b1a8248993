"""The tar reader sees what webdataset sees, and refuses whatever would lose or double samples."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tars import FORMATS, patch_header, read_with_webdataset, write_tar

from mmscale.data.index import tar_headers
from mmscale.data.index.tar_headers import BLOCK, Member, scan
from mmscale.errors import UserError

SAMPLES = {
    "0001.png": b"picture",
    "0001.TXT": b"",
    "0001.seg.0.png": b"x" * 1500,
    "dir/sub.d/0002.json": b"{}",
    "dir/sub.d/0002.wav": b"w" * 512,
    "dir/0001.png": b"same base name, other folder",
}


def read_with_scan(path: Path) -> dict[str, dict[str, bytes]]:
    samples: dict[str, dict[str, bytes]] = {}
    raw = path.read_bytes()
    for member in scan(path):
        samples.setdefault(member.key, {})[member.field] = raw[
            member.offset : member.offset + member.size
        ]
    return samples


def header_at(path: Path, number: int = 0) -> int:
    """Byte offset of the header of member ``number`` of a ustar archive."""
    with tarfile.open(path) as archive:
        return archive.getmembers()[number].offset


def refusal(path: Path) -> str:
    """The message with which the shard is refused; it names shard, byte and remedy."""
    with pytest.raises(UserError) as caught:
        list(scan(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: byte ") and "; " in message and "\n" not in message
    return message


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_tar(tmp_path / "s.tar", SAMPLES, tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("format", FORMATS)
def test_same_samples_as_webdataset(tmp_path: Path, format: str) -> None:
    members = dict(SAMPLES)
    members["a/" * 60 + "long.png"] = b"beyond the 100 bytes of the name"  # prefix, L or x header
    if format != "ustar":
        members["d" * 180 + ".png"] = b"no slash to split at"
        members["图片/数字.png"] = b"not ASCII"
    members |= {
        "README": b"no extension",
        "__info__/shard.json": b"metadata",
        "__shard__": b"metadata",
    }
    path = write_tar(tmp_path / "s.tar", members, FORMATS[format])
    expected = read_with_webdataset(path)
    assert len(expected) == (4 if format == "ustar" else 6)
    assert read_with_scan(path) == expected


def test_members_point_at_their_payload(shard: Path) -> None:
    with tarfile.open(shard) as archive:
        expected = [
            Member(
                info.name,
                *info.name.replace("TXT", "txt").split(".", 1),
                info.offset_data,
                info.size,
            )
            for info in archive.getmembers()
            if "sub.d" not in info.name
        ]
    assert [member for member in scan(shard) if "sub.d" not in member.name] == expected


def test_directories_and_hidden_files_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        folder = tarfile.TarInfo("cats")
        folder.type, folder.size = tarfile.DIRTYPE, 0
        archive.addfile(folder)
        for name in (
            "cats/.DS_Store",
            "cats/._1.png",
            "cats/1.png",
            "cats/noext",
            "cats/1.txt",
            "cats/dot.",
        ):
            archive.addfile(tarfile.TarInfo(name))
    assert [(member.key, member.field) for member in scan(path)] == [
        ("cats/1", "png"),
        ("cats/1", "txt"),
    ]


def test_gnu_base_256_size_is_read(shard: Path) -> None:
    expected = read_with_scan(shard)
    patch_header(shard, 0, 124, b"\x80" + (7).to_bytes(11, "big"))
    assert read_with_scan(shard) == expected


def test_pax_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("1.bin")
        info.size, info.pax_headers = 700, {"size": "700"}
        archive.addfile(info, io.BytesIO(b"p" * 700))
    patch_header(path, 2 * BLOCK, 124, b"%011o\0" % 0)  # as writers do for files beyond 8 GiB
    assert [member.size for member in scan(path)] == [700]


def test_global_pax_header_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(
        path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "commit 1234"}
    ) as archive:
        archive.addfile(tarfile.TarInfo("1.png"))
    assert [member.key for member in scan(path)] == ["1"]


@pytest.mark.parametrize(
    ("compress", "program"),
    [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz"), (None, "zstd")],
)
def test_compressed_archive_names_the_command(shard: Path, compress, program: str) -> None:
    raw = shard.read_bytes()
    shard.write_bytes(compress(raw) if compress else b"\x28\xb5\x2f\xfd" + raw)
    assert f"{program} -dc < {shard}" in refusal(shard)


def test_a_first_name_like_a_magic_number_is_no_compression(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"BZh9.png": b"1"})
    assert [member.key for member in scan(path)] == ["BZh9"]


def test_truncation_anywhere_is_refused(shard: Path) -> None:
    raw = shard.read_bytes()
    end = (
        len(raw.rstrip(b"\0")) // BLOCK * BLOCK + BLOCK + 2 * BLOCK
    )  # last payload block and end marker
    assert list(scan(shard))
    for size in range(0, end, 100):
        shard.write_bytes(raw[:size])
        message = refusal(shard)
        assert any(word in message for word in ("cut short", "more than the whole file")), (
            size,
            message,
        )


def test_cut_between_members_is_refused(shard: Path) -> None:
    at = header_at(shard, 3)  # tarfile itself reads this as a shorter archive
    shard.write_bytes(shard.read_bytes()[:at])
    assert f"byte {at}: the end marker (two zero blocks) is missing" in refusal(shard)


def test_member_cut_inside_its_payload_is_never_given_out(shard: Path) -> None:
    at = header_at(shard, 2)
    shard.write_bytes(shard.read_bytes()[: at + BLOCK + 1000])
    given = []
    with pytest.raises(
        UserError, match=f"byte {at}: truncated: member '0001.seg.0.png' lacks its last 500 bytes"
    ):
        for member in scan(shard):
            given.append(member.name)
    assert given == ["0001.png", "0001.TXT"]


def test_single_zero_block_is_no_end(shard: Path) -> None:
    at = header_at(shard, 2)
    raw = shard.read_bytes()
    shard.write_bytes(raw[:at] + bytes(BLOCK) + raw[at:])
    assert f"byte {at}: a zero block between members" in refusal(shard)
    shard.write_bytes(raw[:at] + bytes(BLOCK))
    assert "end marker" in refusal(shard)


def test_joined_archives_are_refused(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes() * 2)
    assert "data after the end marker" in refusal(shard)


@pytest.mark.parametrize("number", [0, 2])
def test_bad_checksum(shard: Path, number: int) -> None:
    at = header_at(shard, number)
    patch_header(shard, at, 0, b"9", fix_checksum=False)
    assert f"byte {at}: the header checksum is wrong" in refusal(shard)


@pytest.mark.parametrize("type", [b"1", b"2", b"3", b"4", b"6", b"K", b"S", b"D", b"M", b"V", b"Z"])
def test_special_members_are_refused(shard: Path, type: bytes) -> None:
    at = header_at(shard, 1)
    patch_header(shard, at, 156, type)
    assert f"byte {at}: a" in refusal(shard)
    assert "plain files only" in refusal(shard)


def test_pax_sparse_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("1.bin")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "1.bin"}
        archive.addfile(info)
    assert "a sparse file" in refusal(path)


@pytest.mark.parametrize(
    "name", ["/etc/passwd.txt", "../1.png", "a/../../1.png", "a/..", "x\n1.png", "x\x1b[2J.png"]
)
@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_hostile_names(tmp_path: Path, name: str, format: str) -> None:
    padded = name + "/" + "x" * 120 + ".png"  # carried by an L or x header
    for member_name in (name, padded):
        path = write_tar(tmp_path / "s.tar", {member_name: b"1"}, FORMATS[format])
        assert any(word in refusal(path) for word in ("outside the archive", "control characters"))


def test_names_that_are_not_utf8(shard: Path) -> None:
    patch_header(shard, 0, 0, b"\xff\xfe")
    assert "not UTF-8" in refusal(shard)


def test_empty_name(shard: Path) -> None:
    patch_header(shard, 0, 0, bytes(8))
    assert "name of 0 bytes" in refusal(shard)


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\x7f" * 11])
def test_size_beyond_the_file(shard: Path, size: bytes) -> None:
    patch_header(shard, 0, 124, size)
    assert "more than the whole file" in refusal(shard)


@pytest.mark.parametrize("size", [b"\xff" * 12, b"12x45678901\0", b"-0000000001\0"])
def test_size_that_is_no_number(shard: Path, size: bytes) -> None:
    patch_header(shard, 0, 124, size)
    assert "size in the header is not a number" in refusal(shard)


def test_extended_header_is_bounded_before_it_is_read(shard: Path) -> None:
    patch_header(shard, 0, 156, b"L")
    patch_header(shard, 0, 124, b"%011o\0" % (tar_headers.MAX_EXTENDED_BYTES + 1))
    assert f"limit {tar_headers.MAX_EXTENDED_BYTES}" in refusal(shard)


@pytest.mark.parametrize(
    "body",
    [b"9 path=a", b"99 path=a\n", b"path=a\n", b"0 path=a\n", b"-9 path=a\n", b"11 pathname\n"],
)
def test_malformed_pax_records(tmp_path: Path, body: bytes) -> None:
    path = write_tar(tmp_path / "s.tar", {"x": body, "1.png": b"1"}, tarfile.USTAR_FORMAT)
    patch_header(path, 0, 156, b"x")
    assert "malformed pax header" in refusal(path)


def test_extended_header_without_member(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"1.png": b"1", "x": b"10 path=a\n"}, tarfile.USTAR_FORMAT)
    patch_header(path, 2 * BLOCK, 156, b"x")
    assert f"byte {2 * BLOCK}: an extended header without its member" in refusal(path)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("L", "L", "two long names"),
        ("x", "x", "two pax headers"),
        ("L", "x", "both a GNU and a pax long name"),
    ],
)
def test_two_names_for_one_member(tmp_path: Path, first: str, second: str, words: str) -> None:
    bodies = {"L": b"long.png\0", "x": b"16 path=pax.png\n"}
    path = write_tar(
        tmp_path / "s.tar",
        {"a": bodies[first], "b": bodies[second], "1.png": b""},
        FORMATS["ustar"],
    )
    patch_header(path, 0, 156, first.encode())
    patch_header(path, 2 * BLOCK, 156, second.encode())
    assert words in refusal(path)


@pytest.mark.parametrize("second", ["1.png", "1.PNG"])
def test_duplicate_field(tmp_path: Path, second: str) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("1.png", second):
            archive.addfile(tarfile.TarInfo(name))
    assert f"byte {BLOCK}: sample '1' has field 'png' twice" in refusal(path)


def test_split_key(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"1.png": b"", "2.png": b"", "1.txt": b""})
    assert f"byte {2 * BLOCK}: key '1' appears again" in refusal(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    for name in ("missing.tar", "pipe.tar", "."):
        with pytest.raises(UserError, match=str(tmp_path)):
            list(scan(tmp_path / name))


@settings(
    max_examples=250, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    format=st.sampled_from(sorted(FORMATS)),
    flips=st.lists(st.tuples(st.integers(0, 6143), st.integers(0, 255)), max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 12_000)),
    fix=st.booleans(),
)
@example(format="pax", flips=[(512, 0x39)], cut=None, fix=False)
@example(format="gnu", flips=[(156, 0x78)], cut=None, fix=True)
def test_damaged_bytes_give_members_or_a_user_error(
    tmp_path: Path, format: str, flips: list[tuple[int, int]], cut: int | None, fix: bool
) -> None:
    # A name of 120 bytes takes an L or x header; ustar holds it as prefix and name.
    members = {"n" * 60 + "/" + "m" * 60 + ".png": b"1" * 600, "2.txt": b"2", "2.json": b"{}"}
    path = write_tar(tmp_path / "s.tar", members, FORMATS[format])
    raw = bytearray(path.read_bytes())
    for at, value in flips:
        raw[at % len(raw)] = value
    if fix:  # let damage get past the checksum
        for at in {at % len(raw) // BLOCK * BLOCK for at, _ in flips}:
            block = bytes(raw[at : at + 148]) + b" " * 8 + bytes(raw[at + 156 : at + BLOCK])
            raw[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    path.write_bytes(raw[:cut])
    try:
        members = list(scan(path))
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert all(
            member.offset > 0 and member.offset + member.size <= path.stat().st_size
            for member in members
        )
