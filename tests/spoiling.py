"""Spoiling a release by a bit, and what the command line says of it."""

import pytest

from mmscale.cli import main


def complaint(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mmscale: error: ")
    return line


def first_shard(release):
    return sorted(release.glob("model-*.safetensors"))[0]


def flip_last_bit(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
