"""Log-mel spectrograms are those of `transformers`' Whisper feature extractor."""

import numpy as np
import pytest
import soundfile
import torch
import transformers

from mmscale import prf
from mmscale.config import MediaConfig
from mmscale.data.media.audio import decode_audio
from mmscale.data.media.log_mel import LogMel

THEIRS = transformers.WhisperFeatureExtractor(feature_size=80)


def agree(wave: np.ndarray) -> int:
    """Compare the frames that both have: Whisper pads to 30 s of silence, ours stops at the clip's
    end.

    Frames whose window reaches past the end see our mirrored samples and their zeros; they are left
    out.
    """
    ours = LogMel(MediaConfig())(wave.astype(np.float32))
    theirs = THEIRS(wave, sampling_rate=16_000, return_tensors="np").input_features[0].T
    whole = (len(wave) - 200) // 160
    torch.testing.assert_close(
        torch.from_numpy(ours[:whole]), torch.from_numpy(theirs[:whole]), rtol=1e-4, atol=1e-4
    )
    return whole


@pytest.mark.parametrize("length", [16_000, 16_001, 15_999, 12_345, 3_200])
def test_on_synthetic_sound(length):
    time = np.arange(length) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.05 * prf.normal(prf.derive_key("mel"), length)
    assert agree(wave) >= length // 160 - 3


def test_on_real_speech(real_data):
    compared = 0
    for folder in ("yesno", "fsdd"):
        for path in sorted((real_data / folder).rglob("*.wav"))[:6]:
            # Both sets are of 8 kHz, resampled.
            wave = decode_audio(path.read_bytes(), MediaConfig())
            assert soundfile.info(path).samplerate == 8_000
            compared += agree(wave)
    assert compared > 3_000
