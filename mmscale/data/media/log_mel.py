"""Log-mel spectrograms, as Whisper's.

Radford et al., "Robust speech recognition via large-scale weak supervision" (2022), section 2.2:
power spectrum under a Hann window, mel filters on Slaney's scale (Slaney, "Auditory Toolbox",
1998), base-10 logarithm kept within 8 of the clip's maximum, shifted and scaled to about [-1, 1].
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from mmscale.config import MediaConfig

# Slaney's scale: linear up to 1 kHz, then logarithmic, 27 mels for a factor of 6.4.
_HZ_PER_MEL = 200.0 / 3.0
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27.0

_FLOOR = 1e-10
_RANGE = 8.0
_THREADS = threading.Lock()  # the number of torch's threads is the process's


@contextmanager
def _one_thread() -> Iterator[None]:
    """Operators as small as a clip's gain nothing from more, and can lose much: on the sixteen
    cores of a virtual machine, waiting for each other took sixteen threads fifty times as long as
    the work."""
    if torch.get_num_threads() == 1:
        yield
        return
    with _THREADS:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def hz_to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's mel of frequencies in hertz."""
    above = _BREAK_MEL + np.log(np.maximum(hz, _BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
    return np.where(hz < _BREAK_HZ, hz / _HZ_PER_MEL, above)


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of `hz_to_mel`."""
    above = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _BREAK_MEL) - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, mel * _HZ_PER_MEL, above)


def mel_filters(sample_rate: int, n_fft: int, bins: int) -> NDArray[np.float64]:
    """float64 [bins, n_fft // 2 + 1] triangular filters from 0 Hz to half of ``sample_rate``.

    Filter ``b`` rises from edge ``b`` to edge ``b + 1`` and falls to edge ``b + 2``; the ``bins +
    2`` edges are equally spaced in mel. Its height is ``2 / (edge[b + 2] - edge[b])``: equal area
    in hertz.
    """
    nyquist = sample_rate / 2.0
    edges = mel_to_hz(np.linspace(0.0, float(hz_to_mel(np.asarray(nyquist))), bins + 2))[:, None]
    frequencies = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))


class LogMel:
    """Waveforms to log-mel spectrograms by the numbers of a `MediaConfig`."""

    def __init__(self, media: MediaConfig) -> None:
        self._media = media
        self._window = torch.hann_window(media.mel_window)
        filters = mel_filters(media.sample_rate, media.mel_window, media.mel_bins)
        self._filters = torch.from_numpy(filters.astype(np.float32))

    def __call__(self, wave: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [n] at ``media.sample_rate`` → float32 [media.audio_frames(n), mel_bins].

        Frame ``f`` is centred on sample ``f * mel_hop``; the ends are mirrored.
        """
        media = self._media
        n_fft = media.mel_window
        half = n_fft // 2
        if len(wave) > half:
            mirrored = np.concatenate([wave[half:0:-1], wave, wave[-2 : -half - 2 : -1]])
        else:  # numpy mirrors as often as it takes
            mirrored = np.pad(wave if len(wave) else np.zeros(1, np.float32), half, mode="reflect")
        with _one_thread():
            spectrum = torch.stft(
                torch.from_numpy(mirrored),
                n_fft,
                media.mel_hop,
                window=self._window,
                center=False,
                return_complex=True,
            )
            power_FT = (
                torch.view_as_real(spectrum[:, : media.audio_frames(len(wave))]).square().sum(-1)
            )
            log_MT = (self._filters @ power_FT).clamp_min(_FLOOR).log10()
            log_MT = torch.maximum(log_MT, log_MT.max() - _RANGE)
            return ((log_MT + 4.0) / 4.0).T.contiguous().numpy()
