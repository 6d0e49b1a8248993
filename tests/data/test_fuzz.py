"""Damaged shards and media: the indexer refuses or lists, decoders give a `SampleFault`, nothing
else ever.

`make fuzz` runs the same tests with many more examples.
"""

from __future__ import annotations

import functools
import io
import json
import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tars import BLOCK, FORMATS, write_tar

from mmscale.config import AugmentConfig, MediaConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.index.dataset import Dataset
from mmscale.data.index.json_field import json_text
from mmscale.data.index.probe import kind_of, probe
from mmscale.data.index.verify_shards import verify_shards
from mmscale.data.media.audio import decode_audio
from mmscale.data.media.augment import CROP_DRAWS, draw_crop
from mmscale.data.media.image import decode_image
from mmscale.errors import SampleFault, UserError
from mmscale.prf import normal, uniform

# Pillow warns of odd metadata that takes nothing from the picture.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
EXAMPLES = int(os.environ.get("MMSCALE_FUZZ_EXAMPLES", "150"))
fuzz = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# Small, so that damage often meets them.
MEDIA = MediaConfig(
    image_height=16,
    image_width=16,
    max_image_tokens=4,
    max_image_pixels=20_000,
    max_audio_s=2.0,
    max_file_bytes=50_000,
)

# Numbers at which readers of sizes and offsets go wrong, in either byte order.
EDGES = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
]


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A few changes to some bytes: bits, edge values, cuts, repeated and removed stretches."""
    place = st.integers(0, (1 << 16) - 1)
    # Half of the places lie in the first 1/64, where headers are.
    place = st.one_of(place, place.map(lambda at: at >> 6))
    kinds = st.sampled_from(["bit", "edge", "cut", "remove", "repeat"])
    steps = draw(st.lists(st.tuples(kinds, place, st.integers(0, 63)), min_size=1, max_size=5))

    def apply(data: bytes) -> bytes:
        for kind, place, value in steps:
            at = place * len(data) >> 16
            if kind == "bit":
                data = (
                    data[:at]
                    + bytes(byte ^ 1 << (value & 7) for byte in data[at : at + 1])
                    + data[at + 1 :]
                )
            elif kind == "edge":
                edge = EDGES[value % len(EDGES)]
                data = data[:at] + edge + data[at + len(edge) :]
            elif kind == "cut":
                data = data[:at]
            elif kind == "remove":
                data = data[:at] + data[at + value :]
            else:
                data = data[:at] + data[at : at + value] + data[at:]
        return data

    return apply


def encode(kind: str, mode: str = "RGB", **options: object) -> bytes:
    ramp = np.arange(40 * 30 * 4).reshape(30, 40, 4) * 7 % 256
    image = Image.fromarray(ramp.astype(np.uint8), "RGBA").convert("RGB" if mode == "P" else mode)
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    image.quantize(16).save(buffer, kind, **options) if mode == "P" else image.save(
        buffer, kind, exif=exif, **options
    )
    return buffer.getvalue()


PICTURES = {
    "baseline.jpg": encode("JPEG"),
    "progressive.jpg": encode("JPEG", progressive=True, restart_marker_blocks=2),
    "cmyk.jpg": encode("JPEG", "CMYK"),
    "rgba.png": encode("PNG", "RGBA"),
    "palette.png": encode("PNG", "P", transparency=3),
    "lossy.webp": encode("WEBP"),
    "lossless.webp": encode("WEBP", "RGBA", lossless=True),
    "palette.gif": encode("GIF", "P"),
    "rgb.bmp": encode("BMP"),
    "plain.tif": encode("TIFF"),
    "lzw.tif": encode("TIFF", "RGBA", compression="tiff_lzw"),
}


def sound(kind: str, subtype: str, channels: int = 1) -> bytes:
    wave = np.repeat(0.1 * normal(1, 4000)[:, None], channels, axis=1)
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, 8000, format=kind, subtype=subtype)
    return buffer.getvalue()


SOUNDS = {
    "pcm.wav": sound("WAV", "PCM_16", 2),
    "adpcm.wav": sound("WAV", "IMA_ADPCM"),
    "pcm.flac": sound("FLAC", "PCM_16"),
    "vorbis.ogg": sound("OGG", "VORBIS"),
    "opus.opus": sound("OGG", "OPUS"),
    "layer3.mp3": sound("MP3", "MPEG_LAYER_III"),
}
DOCUMENT = json.dumps(
    {"label": "猫", "boxes": [[1, 2.5], {"x": None}], "text": 'a\\b"c\ud83d\ude00'}
).encode()


def check_picture(data: bytes) -> None:
    """Probe and decoder agree on what the picture takes, or one of them says what is wrong."""
    try:
        width, height = probe("image", data, MEDIA)
        assert 1 <= width * height <= MEDIA.max_image_pixels
        tokens = np.prod(MEDIA.image_grid(height, width))
        crop = functools.partial(
            draw_crop,
            cfg=AugmentConfig(image_crop=0.2),
            numbers=uniform(len(data), CROP_DRAWS).tolist(),
        )
        for pixels in (decode_image(data, MEDIA), decode_image(data, MEDIA, crop)):
            assert pixels.dtype == np.uint8 and pixels.shape[0] == 3
            assert pixels[0].size == tokens * MEDIA.image_patch**2
    except SampleFault as fault:
        check_reason(fault)


def check_sound(data: bytes) -> None:
    try:
        frames, rate = probe("audio", data, MEDIA)
        assert 1 <= frames <= MEDIA.max_audio_s * rate
        wave = decode_audio(data, MEDIA)
        assert wave.dtype == np.float32 and wave.shape == (MEDIA.audio_samples(frames, rate),)
        assert np.isfinite(wave).all()
    except SampleFault as fault:
        check_reason(fault)


def check_reason(fault: SampleFault) -> None:
    reason = str(fault)
    assert reason and "\n" not in reason and " at 0x" not in reason and len(reason) < 250


@fuzz
@given(name=st.sampled_from(sorted(PICTURES)), change=damage())
def test_damaged_pictures(name: str, change: Callable[[bytes], bytes]) -> None:
    check_picture(change(PICTURES[name]))


@fuzz
@given(name=st.sampled_from(sorted(SOUNDS)), change=damage())
def test_damaged_sounds(name: str, change: Callable[[bytes], bytes]) -> None:
    check_sound(change(SOUNDS[name]))


@fuzz
@given(
    head=st.sampled_from(
        sorted({data[:n] for data in (PICTURES | SOUNDS).values() for n in (4, 12, 40)})
    ),
    tail=st.binary(max_size=300),
)
def test_noise_after_a_known_start(head: bytes, tail: bytes) -> None:
    check_picture(head + tail)
    check_sound(head + tail)


@fuzz
@given(change=damage())
@example(change=lambda data: b"[" * 200_000)
@example(change=lambda data: b"-" + b"9" * 100_000)
def test_damaged_json(change: Callable[[bytes], bytes]) -> None:
    document = change(DOCUMENT)
    try:
        characters, zero = probe("json", document, MEDIA)
    except SampleFault as fault:
        check_reason(fault)
        return
    text = document.decode()
    assert (characters, zero) == (len(text), 0)
    for path in (
        "label",
        "boxes.0.1",
        "boxes.1.x",
        "text",
        "label.0",
        "boxes.99999999999999999999",
    ):
        value = json_text(text, path)
        assert value is None or isinstance(value, str)


def shard_bytes(format: str) -> bytes:
    """A small shard with every kind of field and a name that takes an extended header."""
    members = {
        "0001.png": PICTURES["palette.png"],
        "0001.txt": b"one",
        "0001.json": DOCUMENT,
        "n" * 60 + "/" + "m" * 60 + ".jpg": PICTURES["baseline.jpg"][:],
        "0003.wav": SOUNDS["adpcm.wav"],
        "0003.cls": b"3",
        "0004.pyd": b"\x80\x04.",
        "0004.txt": b"",
    }
    with tempfile.TemporaryDirectory() as folder:
        return write_tar(Path(folder) / "s.tar", members, FORMATS[format]).read_bytes()


SHARDS = {format: shard_bytes(format) for format in FORMATS}


def with_checksums(raw: bytes) -> bytes:
    """``raw`` with the checksum of every block that looks like a header set right, so that damage
    gets past it.
    """
    blocks = [raw[at : at + BLOCK] for at in range(0, len(raw), BLOCK)]
    for number, block in enumerate(blocks):
        if block[257:262] == b"ustar" and len(block) == BLOCK:
            total = sum(block[:148]) + 8 * 0x20 + sum(block[156:])
            blocks[number] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


@fuzz
@given(
    format=st.sampled_from(sorted(SHARDS)),
    change=damage(),
    spliced=st.one_of(
        st.none(),
        st.tuples(st.sampled_from(sorted(SHARDS)), st.integers(0, 40), st.integers(0, 40)),
    ),
    checksums=st.booleans(),
)
def test_damaged_shards(
    format: str,
    change: Callable[[bytes], bytes],
    spliced: tuple[str, int, int] | None,
    checksums: bool,
) -> None:
    raw = change(SHARDS[format])
    if spliced is not None:
        other, here, there = spliced
        raw = raw[: here * BLOCK] + SHARDS[other][there * BLOCK :]
    if checksums:
        raw = with_checksums(raw)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "s.tar").write_bytes(raw)
        try:
            manifest = build_index(folder, MEDIA, progress=False)
        except UserError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
            return
        assert verify_shards(folder) == []
        for problem in manifest.problems():
            assert problem.startswith(f"{folder / 's.tar'}: byte ") and "\n" not in problem
        for field in manifest.fields:
            facts = manifest.column(field)
            for offset, size, crc in zip(
                *(facts[part].tolist() for part in ("offset", "size", "crc")), strict=True
            ):
                assert offset == 0 or zlib.crc32(raw[offset : offset + size]) == crc
        check_contents(Dataset([manifest]))


def check_contents(dataset: Dataset) -> None:
    """Everything that was indexed can be read, and decodes or is a fault."""
    checks = {"image": check_picture, "audio": check_sound}
    numbers = np.arange(len(dataset))
    for field in ("image", "audio", "text", "cls", "json.label"):
        try:
            present = np.flatnonzero(dataset.facts(field, numbers)["offset"])
        except UserError:
            continue  # no sample of this shard has it
        for sample in present.tolist():
            try:
                if field in checks:
                    checks[field](dataset.read(field, sample))
                else:
                    dataset.text(field, sample)
            except SampleFault as fault:
                check_reason(fault)


@pytest.mark.parametrize("name", sorted(PICTURES | SOUNDS))
def test_undamaged_media_decode(name: str) -> None:
    """Otherwise the tests above would prove nothing."""
    data = (PICTURES | SOUNDS)[name]
    kind = kind_of(name)
    assert min(probe(kind, data, MEDIA)) > 0
    decode_image(data, MEDIA) if kind == "image" else decode_audio(data, MEDIA)
