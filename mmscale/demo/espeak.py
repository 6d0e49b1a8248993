"""Speech synthesis with espeak-ng (the library and voices of ``espeakng-loader``, through ctypes).

The library keeps state from one utterance to the next (flutter, phase, breath noise) that cannot be
reset, and is not re-entrant. `speak` therefore runs it in a child process of its own: the same list
of utterances gives the same samples every time, a crash of the C library is an error message, and
two callers cannot disturb each other. The child is this module run as a program; it reads JSON
lines and writes raw samples.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mmscale.errors import UserError
from mmscale.messages import write_line

SAMPLE_RATE = 22_050

# From speak_lib.h, the library's public header.
_OUTPUT_SYNCHRONOUS = 2
_DO_NOT_EXIT = 0x8000
_PARAMETER_SPEED, _PARAMETER_VOLUME, _PARAMETER_PITCH = 1, 2, 3
_POSITION_CHARACTER = 1
_TEXT_UTF8 = 1

# Below the library's default of 100, at which the louder variants clip.
_VOLUME = 40

# The library copies its data path into a buffer of 160 bytes and fails on longer ones.
_LONGEST_DATA_PATH = 120

_COUNT = struct.Struct("<I")


@dataclass(frozen=True)
class Utterance:
    """What to say and how."""

    text: str
    """UTF-8 text in the language of ``accent``."""
    accent: str
    """espeak-ng language name, such as ``en-us`` or ``cmn``."""
    variant: str
    """Voice variant (the timbre): a file name of espeak-ng's ``voices/!v``, such as ``f3``."""
    speed: int
    """Words a minute, 80 to 450."""
    pitch: int
    """Relative pitch, 0 to 99; 50 is the variant's own."""


def speak(utterances: Sequence[Utterance]) -> Iterator[NDArray[np.int16]]:
    """Yield int16 [samples] at `SAMPLE_RATE` Hz, mono, for each utterance in turn.

    Deterministic for the whole list: an utterance may sound slightly different after another one.

    Raises `UserError` when espeak-ng is not installed or does not know an accent or variant.
    """
    if find_spec("espeakng_loader") is None:
        raise UserError("espeakng-loader is not installed; run: pip install 'mmscale[demo]'")
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryFile() as requests, tempfile.TemporaryFile() as complaints:
        requests.write(
            b"".join(json.dumps(asdict(utterance)).encode() + b"\n" for utterance in utterances)
        )
        requests.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-m", "mmscale.demo.espeak"],
            stdin=requests,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=environment,
        )
        assert child.stdout is not None
        try:
            for _ in utterances:
                samples = _read_samples(child.stdout)
                if samples is None:
                    break
                yield samples
            else:
                child.wait()
                return
            child.wait()
            complaints.seek(0)
            lines = complaints.read().decode(errors="replace").strip().splitlines() or [
                "no message"
            ]
            raise UserError(f"espeak-ng ended with status {child.returncode}: {lines[-1]}")
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


def _read_samples(stream: IO[bytes]) -> NDArray[np.int16] | None:
    header = stream.read(_COUNT.size)
    if len(header) < _COUNT.size:
        return None
    size = 2 * _COUNT.unpack(header)[0]
    payload = stream.read(size)
    return np.frombuffer(payload, dtype="<i2").astype(np.int16) if len(payload) == size else None


class _Synthesizer:
    """The C library, initialised; at most one of these may be made in a process."""

    def __init__(self, library: str, data: str) -> None:
        self._data = Path(data)
        self._pieces: list[bytes] = []
        self._library = ctypes.CDLL(library)
        self._declare()
        rate = self._library.espeak_Initialize(
            _OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), _DO_NOT_EXIT
        )
        if rate != SAMPLE_RATE:
            raise UserError(
                f"espeak-ng did not start with its data in {data}; reinstall espeakng-loader"
            )
        # The library seeds its breath noise with the clock.
        self._library.espeak_ng_SetRandSeed(1)
        self._library.espeak_SetSynthCallback(self._callback)

    def _declare(self) -> None:
        c_int, c_uint, c_char_p, c_void_p = (
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_char_p,
            ctypes.c_void_p,
        )
        callback_type = ctypes.CFUNCTYPE(c_int, ctypes.POINTER(ctypes.c_short), c_int, c_void_p)
        # Kept on the object: ctypes frees a callback that nobody refers to, and the library would
        # jump to it.
        self._callback = callback_type(self._collect)
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "espeak_Initialize": (c_int, [c_int, c_int, c_char_p, c_int]),
            "espeak_ng_SetRandSeed": (c_int, [ctypes.c_long]),
            "espeak_SetSynthCallback": (None, [callback_type]),
            "espeak_SetVoiceByName": (c_int, [c_char_p]),
            "espeak_SetParameter": (c_int, [c_int, c_int, c_int]),
            "espeak_Synth": (
                c_int,
                [c_char_p, ctypes.c_size_t, c_uint, c_int, c_uint, c_uint, c_void_p, c_void_p],
            ),
            "espeak_Synchronize": (c_int, []),
        }
        for name, (result, arguments) in signatures.items():
            function: Callable[..., Any] = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments  # type: ignore[attr-defined]

    def _collect(self, samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            self._pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    def __call__(self, utterance: Utterance) -> bytes:
        """Native-endian int16 samples."""
        # An unknown variant is not an error for the library: it falls back on the plain voice.
        if not (self._data / "voices" / "!v" / utterance.variant).is_file():
            raise UserError(
                f"espeak-ng has no voice variant {utterance.variant!r}; reinstall espeakng-loader"
            )
        voice = f"{utterance.accent}+{utterance.variant}"
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise UserError(
                f"espeak-ng has no voice {utterance.accent!r}; reinstall espeakng-loader"
            )
        self._library.espeak_SetParameter(_PARAMETER_SPEED, utterance.speed, 0)
        self._library.espeak_SetParameter(_PARAMETER_PITCH, utterance.pitch, 0)
        self._library.espeak_SetParameter(_PARAMETER_VOLUME, _VOLUME, 0)
        self._pieces.clear()
        text = utterance.text.encode() + b"\0"
        status = self._library.espeak_Synth(
            text, len(text), 0, _POSITION_CHARACTER, 0, _TEXT_UTF8, None, None
        )
        if status != 0 or self._library.espeak_Synchronize() != 0:
            raise UserError(f"espeak-ng could not say {utterance.text!r} (status {status})")
        return b"".join(self._pieces)


def _serve(requests: IO[bytes], samples: IO[bytes]) -> None:
    """The child's whole work: a JSON line in, a sample count and the samples out."""
    import espeakng_loader

    with tempfile.TemporaryDirectory() as folder:
        data = espeakng_loader.get_data_path()
        if len(os.fsencode(data)) > _LONGEST_DATA_PATH:
            short = Path(folder) / "espeak-ng-data"
            short.symlink_to(data, target_is_directory=True)
            data = str(short)
        synthesizer = _Synthesizer(espeakng_loader.get_library_path(), data)
        for line in requests:
            pcm = np.frombuffer(synthesizer(Utterance(**json.loads(line))), dtype=np.int16)
            samples.write(_COUNT.pack(len(pcm)) + pcm.astype("<i2").tobytes())
        samples.flush()


def main() -> int:
    """Entry of the child process."""
    # Whatever the C library prints must not land between the samples.
    samples = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        _serve(sys.stdin.buffer, samples)
    except UserError as error:
        write_line(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
