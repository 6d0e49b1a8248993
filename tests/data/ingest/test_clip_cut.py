"""A part of a recording is exactly that part, and nothing that is not there."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from layout_packs import noise, samples_of, write_sound

from mmscale.config import MediaConfig
from mmscale.data.ingest.clip_cut import ClipCut
from mmscale.data.ingest.table_row import RowReader
from mmscale.errors import UserError

RATE = 16_000
MEDIA = MediaConfig()


def cut(path: Path, begin_s: float, end_s: float | None, media: MediaConfig = MEDIA) -> bytes:
    reader = RowReader(path.parent, media)
    row = reader.row("row 1", {"audio": ClipCut(path.name, begin_s, end_s)}, "k")
    assert list(row.fields) == ["flac"]
    return row.fields["flac"].read(row.where, media)


@pytest.mark.parametrize("ending", ["wav", "flac"])
@pytest.mark.parametrize("channels", [1, 2])
def test_16_bits_are_kept_as_they_are(tmp_path: Path, ending: str, channels: int) -> None:
    wave = noise(3 * RATE, channels=channels)
    write_sound(tmp_path / f"rec.{ending}", wave)
    part = cut(tmp_path / f"rec.{ending}", 0.5, 2.25)
    assert np.array_equal(samples_of(part), wave[RATE // 2 : RATE * 9 // 4])
    assert soundfile.info(io.BytesIO(part)).samplerate == RATE
    assert np.array_equal(samples_of(cut(tmp_path / f"rec.{ending}", 1, None)), wave[RATE:])


@pytest.mark.parametrize(("subtype", "dtype"), [("PCM_24", "int32"), ("PCM_U8", "int16")])
def test_other_whole_numbers_are_kept_too(tmp_path: Path, subtype: str, dtype: str) -> None:
    wave = np.random.default_rng(1).normal(0, 0.2, (RATE, 1))
    soundfile.write(tmp_path / "rec.wav", wave, RATE, subtype=subtype)
    stored = soundfile.read(tmp_path / "rec.wav", dtype=dtype, always_2d=True)[0]
    assert np.array_equal(
        samples_of(cut(tmp_path / "rec.wav", 0.25, 0.5), dtype), stored[4000:8000]
    )


@pytest.mark.parametrize("ending", ["opus", "ogg", "mp3"])
def test_lossy_sound_is_what_its_decoder_gives(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rec.{ending}"
    write_sound(path, noise(3 * RATE))
    decoded = soundfile.read(path, dtype="float64", always_2d=True)[0]
    part = samples_of(cut(path, 1, 2))
    assert np.abs(part - decoded[RATE : 2 * RATE] * 2**15).max() <= 0.51
    assert len(part) == RATE


@pytest.mark.parametrize("ending", ["opus", "ogg", "mp3"])
@pytest.mark.parametrize("seconds", [0.1, 7])
def test_a_part_of_lossy_sound_can_begin_anywhere(tmp_path: Path, ending, seconds) -> None:
    """Frames of MP3 lean on those before them, so that a seek alone gives a wrong beginning."""
    t = np.arange(60 * RATE) / RATE
    path = tmp_path / f"rec.{ending}"
    wave = 0.5 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * 1234 * t)
    write_sound(path, (wave * 2**15).astype(np.int16))
    decoded = soundfile.read(path, dtype="float64", always_2d=True)[0]
    frames = round(seconds * RATE)
    for begin in np.random.default_rng(0).integers(0, 60 * RATE - frames, 20):
        part = samples_of(cut(path, begin / RATE, (begin + frames) / RATE))
        assert np.abs(part - decoded[begin : begin + frames] * 2**15).max() <= 0.51


def test_what_is_over_full_scale_does_not_wrap_around(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "rec.wav", np.full(RATE, 1.5), RATE, subtype="FLOAT")
    assert samples_of(cut(tmp_path / "rec.wav", 0, 0.5)).min() == 2**15 - 1


def test_a_part_of_a_recording_over_the_limit_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "rec.wav"
    write_sound(path, noise(10 * RATE))
    small = MediaConfig(max_file_bytes=100_000)
    assert path.stat().st_size > small.max_file_bytes
    assert len(samples_of(cut(path, 8, 9, small))) == RATE
    with pytest.raises(UserError, match=r"row 1: .*rec\.wav: the part is over media\.max_file"):
        cut(path, 0, 9, small)


@pytest.mark.parametrize(
    ("begin_s", "end_s", "message"),
    [
        (1, 1, "holds no sound"),
        (-1, 1, "holds no sound"),
        (2, 1, "holds no sound"),
        (1, 3.2, "but the recording has 3 s"),
        (3, None, "holds no sound"),
        (4, 5, "but the recording has 3 s"),
        (float("nan"), 1, "no finite numbers"),
        (0, float("inf"), "no finite numbers"),
    ],
)
def test_times_that_are_not_there(tmp_path: Path, begin_s, end_s, message) -> None:
    write_sound(tmp_path / "rec.wav", noise(3 * RATE))
    with pytest.raises(UserError, match=rf"^row 1: .*rec\.wav: .*{message}"):
        cut(tmp_path / "rec.wav", begin_s, end_s)


def test_rounded_times_end_with_the_recording(tmp_path: Path) -> None:
    write_sound(tmp_path / "rec.wav", noise(3 * RATE))
    assert len(samples_of(cut(tmp_path / "rec.wav", 2, 3.05))) == RATE


def test_no_sound_is_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "rec.wav").write_bytes(b"FORM\0\0\0\0AIFF" + bytes(100))
    with pytest.raises(UserError, match=r"rec\.wav: not a sound in a format that is read"):
        cut(tmp_path / "rec.wav", 0, 1)
    write_sound(tmp_path / "rec.flac", noise(RATE))
    with open(tmp_path / "rec.flac", "r+b") as file:
        file.truncate(5000)
    with pytest.raises(UserError, match=r"rec\.flac: "):
        cut(tmp_path / "rec.flac", 0.5, 1)
    with pytest.raises(UserError, match=r"'gone\.wav': no such file"):
        cut(tmp_path / "gone.wav", 0, 1)


def test_a_recording_that_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rec.wav"
    write_sound(path, noise(RATE))
    row = RowReader(tmp_path, MEDIA).row("row 1", {"audio": ClipCut("rec.wav", 0, 0.5)}, "k")
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match=r"rec\.wav: changed while it was packed"):
        row.encode(MEDIA)


def test_other_times_are_another_fingerprint(tmp_path: Path) -> None:
    write_sound(tmp_path / "rec.wav", noise(RATE))
    reader = RowReader(tmp_path, MEDIA)
    prints = {
        reader.row("row 1", {"audio": ClipCut("rec.wav", *times)}, "k").fingerprint()
        for times in [(0, 0.5), (0, 0.25), (0.1, 0.5), (0, None), (0, 3600.1231), (0, 3600.1232)]
    }
    assert len(prints) == 6
