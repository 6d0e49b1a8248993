"""Sound of exact length, resampled faithfully; broken files as faults; spectrograms by the
formula.
"""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
import soundfile
import torch

from mmscale.config import MediaConfig
from mmscale.data.media.audio import decode_audio, fit_length
from mmscale.data.media.log_mel import LogMel, hz_to_mel, mel_filters, mel_to_hz
from mmscale.errors import SampleFault
from mmscale.prf import normal

MEDIA = MediaConfig()


def encode(wave: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def sine(hertz: float, rate: int, seconds: float = 0.5, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(
        np.float32
    )


def tone(wave: np.ndarray, rate: int) -> tuple[float, float]:
    """Frequency and amplitude of the strongest sine in the middle of the clip."""
    middle = wave[len(wave) // 4 : 3 * len(wave) // 4]
    window = np.hanning(len(middle))
    spectrum = np.abs(np.fft.rfft(middle * window, 16 * len(middle)))
    peak = int(spectrum.argmax())
    return peak * rate / (16 * len(middle)), 2 * spectrum[peak] / window.sum()


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_keeps_frequency_and_amplitude(rate):
    wave = decode_audio(encode(sine(1000, rate), rate, subtype="FLOAT"), MEDIA)
    frequency, amplitude = tone(wave, MEDIA.sample_rate)
    assert frequency == pytest.approx(1000, abs=1)
    assert amplitude == pytest.approx(0.5, rel=0.005)


def test_resampling_removes_what_would_alias():
    wave = decode_audio(encode(sine(12_000, 48_000), 48_000, subtype="FLOAT"), MEDIA)
    assert np.abs(wave[1000:-1000]).max() < 1e-3


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("frames", [1, 2, 37, 4_001])
def test_length_is_the_planned_one(rate, frames):
    wave = decode_audio(encode(np.full(frames, 0.25, np.float32), rate), MEDIA)
    assert wave.dtype == np.float32
    assert wave.shape == (MEDIA.audio_samples(frames, rate),)
    assert np.isfinite(wave).all()


def test_samples_at_the_same_rate_are_untouched():
    pcm = (normal(1, 1000) * 5000).astype(np.int16)
    assert np.array_equal(
        decode_audio(encode(pcm, 16_000), MEDIA), (pcm / 32768).astype(np.float32)
    )


def test_channels_are_averaged():
    stereo = np.stack([sine(440, 16_000), -0.5 * sine(440, 16_000)], axis=1)
    wave = decode_audio(encode(stereo, 16_000, subtype="FLOAT"), MEDIA)
    assert np.allclose(wave, stereo.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    "kind, subtype",
    [
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
        ("WAV", "ULAW"),
    ],
)
def test_formats(kind, subtype):
    if subtype not in soundfile.available_subtypes(kind):
        pytest.skip(f"this libsndfile cannot write {kind} {subtype}")
    data = encode(sine(1000, 16_000, seconds=1.0), 16_000, kind, subtype)
    info = soundfile.info(io.BytesIO(data))
    wave = decode_audio(data, MEDIA)
    assert len(wave) == MEDIA.audio_samples(info.frames, info.samplerate)
    frequency, amplitude = tone(wave, 16_000)
    assert frequency == pytest.approx(1000, abs=2)
    assert amplitude == pytest.approx(0.5, rel=0.05)


def test_limits_are_read_from_the_header():
    with pytest.raises(SampleFault, match=r"2\.0 s is over media\.max_audio_s=1\.5"):
        decode_audio(encode(np.zeros(16_000, np.float32), 8_000), MediaConfig(max_audio_s=1.5))
    with pytest.raises(SampleFault, match="channels"):
        decode_audio(encode(np.zeros((10, 9), np.float32), 8_000), MEDIA)
    with pytest.raises(SampleFault, match="1000 to 384000"):
        decode_audio(encode(np.zeros(10, np.float32), 500_000), MEDIA)


FLAC = encode(normal(2, 16_000) * 0.1, 16_000, "FLAC")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RIFF nonsense",
        encode(np.zeros(0, np.float32), 16_000),
        FLAC[: len(FLAC) // 2],
        encode(np.array([0.0, np.nan, 0.0], np.float32), 16_000, subtype="FLOAT"),
        encode(np.array([0.0, np.inf, 0.0], np.float32), 16_000, subtype="FLOAT"),
        encode(np.array([0.0, 1e30, 0.0], np.float32), 16_000, subtype="FLOAT"),
    ],
    ids=["empty", "nonsense", "no samples", "cut flac", "nan", "inf", "huge"],
)
def test_broken_sound_is_a_fault(data):
    with pytest.raises(SampleFault) as caught:
        decode_audio(data, MEDIA)
    message = str(caught.value)
    assert "\n" not in message and "0x" not in message and len(message) < 200


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
def test_mp3_with_and_without_its_length(rate, mode):
    # Silence, then noise: the first frames say little about the rest.
    wave = np.concatenate([np.zeros(rate), normal(3, 2 * rate) * 0.2])
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format="MP3", bitrate_mode=mode)
    data = buffer.getvalue()
    assert len(decode_audio(data, MEDIA)) == pytest.approx(3 * 16_000, abs=16_000 * 0.1)
    tagged = b"ID3\x04\0\0\0\0\x01\0" + bytes(128) + data
    assert len(decode_audio(tagged, MEDIA)) == len(decode_audio(data, MEDIA))
    with pytest.raises(SampleFault, match="without a Xing header"):
        decode_audio(data.replace(b"Xing", b"....", 1).replace(b"Info", b"....", 1), MEDIA)


@pytest.mark.parametrize("rate", [1_000, 4_000, 12_000, 32_000, 96_000, 384_000])
@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8])
@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_any_rate_and_channel_count(rate, channels, kind):
    wave = np.stack(
        [(channel + 1) * sine(200, rate, amplitude=0.05) for channel in range(channels)], axis=1
    )
    decoded = decode_audio(encode(wave, rate, kind), MEDIA)
    assert len(decoded) == MEDIA.audio_samples(len(wave), rate)
    frequency, amplitude = tone(decoded, 16_000)
    assert frequency == pytest.approx(200, abs=2)
    assert amplitude == pytest.approx(0.05 * (channels + 1) / 2, rel=0.02)


@pytest.mark.parametrize(
    ("subtype", "rate"),
    [
        *(("OPUS", rate) for rate in (8_000, 12_000, 16_000, 24_000, 48_000)),
        *(("VORBIS", rate) for rate in (8_000, 11_025, 22_050, 44_100, 48_000)),
        *(("MPEG_LAYER_III", rate) for rate in (8_000, 16_000, 22_050, 44_100, 48_000)),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_lossy_formats_at_their_rates(subtype, rate, channels):
    kind = "MP3" if subtype == "MPEG_LAYER_III" else "OGG"
    wave = np.repeat(sine(300, rate, 1.0)[:, None], channels, axis=1)
    frequency, amplitude = tone(decode_audio(encode(wave, rate, kind, subtype), MEDIA), 16_000)
    assert frequency == pytest.approx(300, abs=2) and amplitude == pytest.approx(0.5, rel=0.1)


def test_channels_take_no_memory_together():
    # Half a minute of 8 channels at the highest rate is 369 MB; only the mean is kept.
    data = encode(np.zeros((384_000, 8), np.int16), 384_000, "FLAC")
    tracemalloc.start()
    decode_audio(data, MEDIA)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 384_000 * 8 * 4 / 2


def test_what_was_written_into_a_pipe():
    wave = sine(440, 16_000)
    whole = encode(wave, 16_000)
    at = whole.index(b"data") + 4
    for unknown in (b"\xff\xff\xff\xff", b"\x00\xf0\xff\x7f"):
        piped = whole[:4] + unknown + whole[8:at] + unknown + whole[at + 4 :]
        assert np.array_equal(decode_audio(piped, MEDIA), decode_audio(whole, MEDIA))
    flac = bytearray(encode(wave, 16_000, "FLAC"))
    flac[21] &= 0xF0  # the 36 bits of STREAMINFO's total: 0 says unknown
    flac[22:26] = bytes(4)
    with pytest.raises(SampleFault, match="does not report its length"):
        decode_audio(bytes(flac), MEDIA)


def test_a_cut_wav_is_a_fault():
    whole = encode(sine(440, 16_000), 16_000)
    with pytest.raises(SampleFault, match=r"cut short: 8000 of 16044 bytes"):
        decode_audio(whole[:8000], MEDIA)
    # Writers disagree about a byte of padding.
    assert len(decode_audio(whole[:-1], MEDIA)) == 8_000 - 1


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_cut_ogg_is_a_fault(subtype):
    whole = encode(sine(440, 48_000, seconds=3.0), 48_000, "OGG", subtype)
    assert len(decode_audio(whole, MEDIA)) == 48_000
    pages = [at for at in range(len(whole)) if whole.startswith(b"OggS", at)]
    for end in (*pages[2:], len(whole) * 9 // 10, len(whole) - 1):
        with pytest.raises(SampleFault, match="an Ogg file without its last page"):
            decode_audio(whole[:end], MEDIA)


def test_other_formats_are_refused():
    for kind in ("AIFF", "AU", "CAF", "W64"):
        with pytest.raises(SampleFault, match="supported format"):
            decode_audio(encode(sine(440, 16_000), 16_000, kind), MEDIA)


def test_fit_length():
    wave = np.arange(1, 4, dtype=np.float32)
    assert fit_length(wave, 2).tolist() == [1, 2]
    assert fit_length(wave, 5).tolist() == [1, 2, 3, 0, 0]


def published_log_mel(wave: np.ndarray, media: MediaConfig) -> np.ndarray:
    """Whisper's formula written out in float64 numpy, frame by frame and filter by filter."""
    n_fft, hop, rate = media.mel_window, media.mel_hop, media.sample_rate
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    padded = np.pad(wave.astype(np.float64), n_fft // 2, mode="reflect")
    frames = -(-len(wave) // hop)
    power = np.stack(
        [
            np.abs(np.fft.rfft(padded[f * hop : f * hop + n_fft] * window)) ** 2
            for f in range(frames)
        ]
    )

    def to_hz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    top = 15 + 27 * np.log(rate / 2 / 1000) / np.log(6.4)
    edges = [to_hz(top * i / (media.mel_bins + 1)) for i in range(media.mel_bins + 2)]
    filters = np.zeros((media.mel_bins, n_fft // 2 + 1))
    for b in range(media.mel_bins):
        low, middle, high = edges[b : b + 3]
        for k in range(n_fft // 2 + 1):
            hz = k * rate / n_fft
            if low < hz <= middle:
                filters[b, k] = (hz - low) / (middle - low)
            elif middle < hz < high:
                filters[b, k] = (high - hz) / (high - middle)
        filters[b] *= 2 / (high - low)
    log = np.log10(np.maximum(power @ filters.T, 1e-10))
    return (np.maximum(log, log.max() - 8) + 4) / 4


@pytest.mark.parametrize(
    "media",
    [
        MEDIA,
        MediaConfig(sample_rate=8_000, mel_bins=40, mel_window=200, mel_hop=80),
        MediaConfig(sample_rate=22_050, mel_bins=64, mel_window=512, mel_hop=200),
        MediaConfig(mel_bins=23, mel_window=321, mel_hop=100),
    ],
    ids=["whisper", "8 kHz", "22 kHz", "odd window"],
)
@pytest.mark.parametrize("samples", [4_800, 5_000, 701])
def test_log_mel_agrees_with_the_formula(media, samples):
    wave = 0.1 * normal(3, samples) + sine(700, media.sample_rate, 1.0)[:samples]
    mel = LogMel(media)(wave)
    assert mel.dtype == np.float32
    assert mel.shape == (media.audio_frames(samples), media.mel_bins)
    assert np.allclose(mel, published_log_mel(wave, media), atol=2e-4)


@pytest.mark.parametrize("samples", [1, 2, 159, 160, 161, 199, 200, 201, 320, 400, 401])
def test_log_mel_of_very_short_clips(samples):
    mel = LogMel(MEDIA)(sine(500, 16_000)[1 : samples + 1])
    assert mel.shape == (MEDIA.audio_frames(samples), 80)
    assert np.isfinite(mel).all()


def test_log_mel_is_the_same_on_any_number_of_threads_which_stays():
    wave, before = 0.1 * normal(5, 160_000), torch.get_num_threads()
    try:
        spectra = []
        for threads in (1, 4):
            torch.set_num_threads(threads)
            spectra.append(LogMel(MEDIA)(wave).tobytes())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert spectra[0] == spectra[1]


def test_log_mel_of_silence_is_flat_and_finite():
    mel = LogMel(MEDIA)(np.zeros(1600, np.float32))
    assert mel.shape == (10, 80)
    assert np.allclose(mel, -1.5)


def test_mel_scale_and_filters():
    assert hz_to_mel(np.array([0.0, 1000.0, 6400.0])).tolist() == pytest.approx([0.0, 15.0, 42.0])
    hertz = np.linspace(0, 8000, 50)
    assert np.allclose(mel_to_hz(hz_to_mel(hertz)), hertz)
    filters = mel_filters(16_000, 400, 80)
    assert filters.shape == (80, 201) and filters.min() == 0.0
    # Values of the `mel_80` filters that Whisper ships.
    assert filters[0, 1] == pytest.approx(0.02486259, abs=1e-7)
    assert filters[0].nonzero()[0].tolist() == [1]
