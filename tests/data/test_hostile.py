"""Shards made to hurt: refused by name, or the one sample left out by name; nothing runs, nothing
grows.

Each case indexes a folder with the command line, in a process of its own whose memory and time are
bounded.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import subprocess
import sys
from pathlib import Path

import hostile_media as media
import numpy as np
import pytest
from PIL import Image
from tars import BLOCK, FORMATS, header, member, write_tar

from mmscale.config import MediaConfig
from mmscale.data.index.dataset import Dataset
from mmscale.data.index.json_field import parse_json
from mmscale.data.index.manifest import Manifest
from mmscale.data.media.image import decode_image
from mmscale.errors import SampleFault, UserError

MOST_SECONDS = 10
MOST_BYTES = 512_000_000
END = bytes(2 * BLOCK)
GOOD = member(b"good.txt", b"good")


# A process between the tests and the command: what Linux reports of a child's memory starts with
# its parent's.
MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[2:], timeout=120).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    print(status, used.ru_maxrss * 1024, used.ru_utime + used.ru_stime, file=file)
"""


def run(command: list[str], cwd: Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of ``python …``; fails above the limits of time and memory."""
    measured = ["-I", "-S", "-c", MEASURE, cwd / "used.txt", sys.executable, *command]
    done = subprocess.run(
        [sys.executable, *measured],
        cwd=cwd,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert done.returncode == 0, done.stderr
    status, memory, seconds = (cwd / "used.txt").read_text().split()
    assert status in ("0", "2") and "Traceback" not in done.stderr, done.stderr
    assert int(memory) < MOST_BYTES and float(seconds) < MOST_SECONDS
    return int(status), done.stdout, done.stderr


def index(folder: Path | str, cwd: Path) -> tuple[int, str]:
    """Exit status and stderr of ``mmscale data index``."""
    status, _, message = run(["-m", "mmscale", "data", "index", str(folder)], cwd)
    return status, message


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self._flag = flag

    def __reduce__(self):
        return os.system, (f"touch {self._flag}",)


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "flag")))
    assert (tmp_path / "flag").exists()


# Every ending that webdataset's default decoders give to pickle, torch, numpy, msgpack, cbor or
# their like.
UNPICKLED = [
    "pyd",
    "pickle",
    "pkl",
    "pth",
    "pt",
    "npy",
    "npz",
    "ten",
    "tb",
    "mp",
    "msg",
    "cbor",
    "dill",
    "joblib",
    "index",
]


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    trap = pickle.dumps(Trap(flag))
    folder = tmp_path / "shards"
    folder.mkdir()
    write_tar(
        folder / "s.tar",
        {f"{ending}.{ending}": trap for ending in UNPICKLED} | {"z.txt": b"text", "z.pyd": trap},
    )
    status, _ = index(folder, tmp_path)
    assert status == 0 and not flag.exists()
    manifest = Manifest.open(folder)
    assert set(manifest.fields) == {*UNPICKLED, "txt"}
    dataset = Dataset([manifest])
    for ending in UNPICKLED:
        with pytest.raises(UserError, match=f"'{ending}'"):
            manifest.locate(ending)
        with pytest.raises(UserError, match=f"'{ending}'"):
            dataset.read(ending, 0)
    assert not flag.exists()


MEDIA_ENDINGS = [
    "png",
    "jpg",
    "webp",
    "gif",
    "bmp",
    "tif",
    "wav",
    "flac",
    "ogg",
    "opus",
    "mp3",
    "json",
    "cls",
    "txt",
]


def test_pickles_under_the_endings_that_are_read(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    trap = pickle.dumps(Trap(flag))
    folder = tmp_path / "shards"
    folder.mkdir()
    write_tar(
        folder / "s.tar",
        {f"{ending}.{ending}": trap for ending in MEDIA_ENDINGS} | {"z.txt": b"text"},
    )
    assert index(folder, tmp_path)[0] == 0
    left_out = [
        json.loads(line) for line in (folder / "index" / "problems.jsonl").read_text().splitlines()
    ]
    assert sorted(problem["key"] for problem in left_out) == sorted(MEDIA_ENDINGS)
    assert not flag.exists()


@pytest.mark.parametrize(
    "name", ["pipe:touch flag", "pipe:touch flag;.tar", "| touch flag", "$(touch flag).tar"]
)
def test_names_that_webdataset_or_a_shell_would_run(tmp_path: Path, name: str) -> None:
    status, message = index(name, tmp_path)
    assert status == 2 and "error: " in message
    # As a plain file that lies in the folder it is a shard like any other.
    shard = tmp_path / f"{name}.tar"
    shard.write_bytes(member(name.encode() + b".txt", b"pipe:touch flag") + END)
    assert index(tmp_path, tmp_path)[0] == 0
    assert not (tmp_path / "flag").exists()


SPARSE = header(b"1.txt", 5, kind=b"S", magic=b"ustar  \0")
LINKS = {
    "hard link": b"1",
    "symbolic link": b"2",
    "character device": b"3",
    "block device": b"4",
    "named pipe": b"6",
}


def pax(records: bytes) -> bytes:
    return member(b"x", records, kind=b"x")


REFUSED = {
    **{
        f"a {what}": header(b"1.txt", 0, kind=kind, link=b"/etc/passwd")
        for what, kind in LINKS.items()
    },
    "a sparse file": SPARSE,
    "a sparse file (pax)": pax(b"22 GNU.sparse.major=1\n") + GOOD,
    "points outside the archive": member(b"../../1.txt", b"1"),
    "points outside the archive (absolute)": member(b"/etc/1.txt", b"1"),
    "points outside the archive (pax)": pax(b"18 path=../../1.t\n") + GOOD,
    "claims 9223372036854775808 bytes": header(b"1.txt", b"\x80" + (1 << 63).to_bytes(11, "big")),
    "claims 9223372036854775807 bytes": pax(b"28 size=9223372036854775807\n") + GOOD,
    "claims 8589934591 bytes": header(b"1.txt", 8**11 - 1),
    "size in the header is not a number": header(b"1.txt", b"\xff" * 12),
    "size in the header is not a number (octal)": header(b"1.txt", b"-0000000001\0"),
    "pax size is not a number": pax(b"11 size=-9\n") + GOOD,
    "an extended header of 8589934591 bytes": header(b"././@LongLink", 8**11 - 1, kind=b"L"),
    "appears again": GOOD + member(b"1.txt", b"1") + member(b"good.cls", b"1"),
    "control characters": member(b"\x1b[2J.txt", b"1"),
    "not UTF-8": member(b"\xff.txt", b"1"),
}


# One process for all of them: each shard alone in its folder, one line of JSON for each.
INDEX_EACH = """
import json, sys
from pathlib import Path
from mmscale.config import MediaConfig
from mmscale.data.index.build_index import build_index
from mmscale.errors import UserError
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        build_index(folder, MediaConfig(), progress=False)
        print(json.dumps(None))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def test_shards_are_refused_by_name(tmp_path: Path) -> None:
    for number, shard in enumerate(REFUSED.values()):
        folder = tmp_path / "shards" / f"{number:02d}"
        folder.mkdir(parents=True)
        (folder / "hostile.tar").write_bytes(shard + GOOD + END)
    status, lines, message = run(["-c", INDEX_EACH, str(tmp_path / "shards")], tmp_path)
    assert status == 0, message
    for number, (words, line) in enumerate(zip(REFUSED, lines.splitlines(), strict=True)):
        folder, refusal = tmp_path / "shards" / f"{number:02d}", json.loads(line)
        assert refusal is not None, words
        assert (
            refusal.startswith(f"{folder / 'hostile.tar'}: byte ")
            and words.partition(" (")[0] in refusal
        ), refusal
        assert "; " in refusal and "\n" not in refusal and "\x1b" not in refusal
        assert not (folder / "index").exists()


def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "hostile.tar").write_bytes(REFUSED["a symbolic link"] + GOOD + END)
    status, message = index(tmp_path, tmp_path)
    assert status == 2
    assert (
        f"{tmp_path / 'hostile.tar'}: byte 0: a symbolic link; " in message.strip().splitlines()[-1]
    )


def compress_zstd(data: bytes) -> bytes:
    return b"\x28\xb5\x2f\xfd" + data[:100]


BOMBS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": compress_zstd}


@pytest.mark.parametrize("program", BOMBS)
def test_compressed_bombs_are_not_opened(tmp_path: Path, program: str) -> None:
    path = tmp_path / "bomb.tar"
    path.write_bytes(BOMBS[program](bytes(30_000_000)))
    status, message = index(tmp_path, tmp_path)
    assert status == 2 and f"run: {program} -dc < {path} > plain.tar" in message


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.zst", "a.tar.xz", "a.tar.bz2"])
def test_compressed_shards_by_their_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(bytes(1000)))
    status, message = index(tmp_path, tmp_path)
    assert status == 2 and name in message and "compress" in message


def test_a_field_for_every_sample_does_not_grow_the_index(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", {f"{i}.x{i}": b"" for i in range(400)}, FORMATS["ustar"])
    status, message = index(tmp_path, tmp_path)
    assert status == 2 and "more than 256" in message


def hostile_pictures() -> dict[str, bytes]:
    """Pictures that are refused from their headers, by file name."""
    bomb = media.zeros_deflated(500_000_000)
    buffer = io.BytesIO()
    Image.new("RGB", (60_000, 1)).save(buffer, "BMP")
    bmp = bytearray(buffer.getvalue())
    bmp[22:26] = (60_000).to_bytes(4, "little")
    strips = {"t258": 8, "t259": 1, "t262": 1, "t273": 8, "t277": 1, "t279": 8}
    return {
        "size.png": media.huge_png(),
        "text.png": media.png(8, 8, (b"zTXt", b"k\0\0" + bomb)),
        "itext.png": media.png(8, 8, (b"iTXt", b"k\0\1\0\0\0" + bomb)),
        "profile.png": media.png(8, 8, (b"iCCP", b"k\0\0" + bomb)),
        "size.jpg": media.jpeg_size(65_500, 65_500),
        "passes.jpg": media.jpeg_of_many_passes(5_000),
        "scans.jpg": media.jpeg_of_many_scans(6_000),
        "canvas.webp": media.webp_canvas(1 << 24, 1 << 8),
        "most.webp": media.webp_canvas(16_383, 16_383),
        "screen.gif": media.gif_screen(65_535, 65_535),
        "frame.gif": media.gif_screen(1, 1, frame=(65_535, 65_535)),
        "size.bmp": bytes(bmp),
        "size.tif": media.tiff(t256=60_000, t257=60_000, t278=60_000, **strips),
        "tile.tif": media.tiff(
            t256=8,
            t257=8,
            t322=1 << 20,
            t323=1 << 20,
            t324=8,
            t325=8,
            t258=8,
            t259=8,
            t262=1,
            t277=1,
        ),
        "negative.tif": media.tiff(t256=1 << 31, t257=2, **strips),
    }


def hostile_sounds() -> dict[str, bytes]:
    return {
        "hours.flac": media.silent_flac(10),
        "pipe.wav": media.wav_header(0xFFFFFFFF, rate=1_000) + bytes(100_000),
        "rate.wav": media.wav_header(1000, rate=4_000_000_000) + bytes(1000),
        "slow.wav": media.wav_header(1000, rate=1) + bytes(1000),
        "channels.wav": media.wav_header(1024 * 1024, channels=1024) + bytes(1024 * 1024),
        "claims.mp3": media.id3((1 << 28) - 1),
        "long.mp3": media.id3(8_000_000) + bytes(8_000_000),
    }


def hostile_texts() -> dict[str, bytes]:
    return {
        "nested.json": b"[" * 100_000 + b"]" * 100_000,
        "objects.json": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "integer.json": b"1" * 1_000_000,
        "broken.json": b'{"a": 1',
        "large.json": b"[" + b"[]," * 20_000_000 + b"1]",
        "large.txt": b"a" * 60_000_000,
        "latin.txt": b"caf\xe9",
        "label.cls": b"\xff",
    }


def test_hostile_members_leave_their_sample_out_by_name(tmp_path: Path) -> None:
    hostile = hostile_pictures() | hostile_sounds() | hostile_texts()
    members = {
        name.replace(".", "-") + "." + name.rpartition(".")[2]: data
        for name, data in hostile.items()
    }
    # What is read although it looks odd: of two equal JSON keys the last counts; the size that a
    # program wrote into a pipe means nothing; what follows a picture's header is only looked at
    # when it is decoded.
    odd = {
        "keys-twice.json": b'{"a": 1, "a": 2}',
        "list.json": b"[" + b"[]," * 1_000_000 + b"1]",
        "pipe.wav": media.wav_header(0x7FFFFFF0) + bytes(1000),
        "chunk.png": media.png(8, 8)[:33] + b"\xff\xff\xff\xf0IDAT",
    }
    write_tar(tmp_path / "s.tar", members | odd | {"zzz.txt": b"good"})
    status, message = index(tmp_path, tmp_path)
    assert status == 0, message
    problems = [
        json.loads(line)
        for line in (tmp_path / "index" / "problems.jsonl").read_text().splitlines()
    ]
    assert sorted(problem["key"] for problem in problems) == sorted(
        name.rpartition(".")[0] for name in members
    )
    assert len(Manifest.open(tmp_path)) == len(odd) + 1
    assert all(problem["reason"] and len(problem["reason"]) < 200 for problem in problems)
    reasons = {problem["key"]: problem["reason"] for problem in problems}
    assert "60000x60000 pixels is over media.max_image_pixels" in reasons["size-png"]
    assert "is over media.max_audio_s" in reasons["hours-flac"]
    assert (
        reasons["nested-json"]
        == reasons["objects-json"]
        == ("JSON nested too deep; 256 levels are read")
    )


def test_decoding_what_passed_the_index_stays_within_the_limits() -> None:
    # Small by their headers; much more follows than the header promises.
    limits = MediaConfig(image_height=16, image_width=16)
    bomb = media.zeros_deflated(300_000_000)
    for data in (media.png(8, 8, (b"IDAT", bomb)), media.png(8, 8, (b"IDAT", bomb), colours=3)):
        try:
            pixels = decode_image(data, limits)
        except SampleFault:
            continue
        assert pixels.shape == (3, 16, 16) and np.unique(pixels).tolist() == [0]
    for data in (media.jpeg_of_many_passes(200), media.jpeg_of_many_scans(200)):
        with pytest.raises(SampleFault, match="passes"):
            decode_image(data, limits)


def test_the_largest_pictures_take_four_bytes_of_memory_a_pixel(tmp_path: Path) -> None:
    kinds = ("grey_16", "rgb", "rgba", "palette")
    for kind in kinds:
        (tmp_path / f"{kind}.png").write_bytes(media.largest_png(kind))
    program = f"""
from mmscale.config import MediaConfig
from mmscale.data.media.image import decode_image
# Not what getrusage reports, which starts at the peak of whoever started the process.
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
for kind in {kinds}:
    with open(kind + ".png", "rb") as file:
        assert decode_image(file.read(), MediaConfig()).shape == (3, 64, 64)
print(peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < 64_000_000 * 4.5


def test_thousands_of_fields_are_refused_before_they_take_memory(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", {f"{number}.x{number}": b"" for number in range(5_000)})
    status, message = index(tmp_path, tmp_path)
    assert status == 2 and "field 'x256' is one of more than 256" in message


def test_the_depth_of_json_does_not_depend_on_who_asks() -> None:
    def deeper(frames: int, document: str) -> object:
        return deeper(frames - 1, document) if frames else parse_json(document)

    for frames in (0, 500):
        deepest = "[" * 256 + '"[[[\\\\\\""' + "]" * 256
        assert deeper(frames, deepest)
        for document in (f"[{deepest}]", '{"a": ' * 257 + "1" + "}" * 257):
            with pytest.raises(SampleFault, match="nested too deep"):
                deeper(frames, document)
