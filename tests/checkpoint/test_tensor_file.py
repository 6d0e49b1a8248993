"""The header of a tensor file is believed only where the file can hold what it says."""

import json
import os
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mmscale.checkpoint import tensor_file
from mmscale.checkpoint.tensor_file import map_tensors, read_tensor_file
from mmscale.errors import UserError


def raw_file(path, header, data: bytes = b"", length: int | None = None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape=(2, 2), offsets=(0, 16), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_it_reads_what_the_library_writes(tmp_path):
    tensors = {
        "b": torch.arange(6).reshape(2, 3),
        "a": torch.ones(3, 1, 2, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(1.5),
        "flag": torch.tensor([True, False, True]),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"who": "me"})
    file_header = read_tensor_file(tmp_path / "x.safetensors")
    assert file_header.metadata == {"who": "me"} and file_header.tensors.keys() == tensors.keys()
    raw, mapped = (tmp_path / "x.safetensors").read_bytes(), map_tensors(file_header)
    for name, tensor in tensors.items():
        stored = file_header.tensors[name]
        assert mapped[name].dtype == tensor.dtype and torch.equal(mapped[name], tensor)
        assert (stored.dtype, stored.shape) == (tensor.dtype, tuple(tensor.shape))
        assert raw[stored.start : stored.stop] == bytes(
            tensor.reshape(-1).view(torch.uint8).numpy()
        )


def test_mapping_reads_nothing_until_it_is_used_and_writes_nothing_back(tmp_path):
    count, each = 16, 4 << 20
    header = {f"t{n}": entry((each,), (n * each, (n + 1) * each), "U8") for n in range(count)}
    path = raw_file(tmp_path / "x.safetensors", header)
    os.truncate(path, path.stat().st_size + count * each)

    def resident():  # kB of the mapped file, of all there are
        maps = Path("/proc/self/smaps").read_text().split(str(path))[1:]
        return [int(re.search(r"Rss: +(\d+) kB", mapping)[1]) for mapping in maps]

    tensors = map_tensors(read_tensor_file(path))
    assert resident() == [0]
    assert not tensors["t3"].any() and 4096 <= sum(resident()) < count * 4096 / 2
    tensors["t5"].fill_(7)
    assert not any(path.read_bytes()[-count * each :])
    del tensors
    assert resident() == []


def test_tensors_that_lie_crookedly_are_copied(tmp_path):
    path = raw_file(
        tmp_path / "x.safetensors",
        {"a": entry((3,), (0, 3), "U8"), "b": entry((2,), (3, 11))},
        bytes(range(11)),
    )
    mapped = map_tensors(read_tensor_file(path))
    assert mapped["a"].tolist() == [0, 1, 2]
    assert mapped["b"].tolist() == list(struct.unpack("<2f", bytes(range(3, 11))))


HUGE = 1 << 62
ONE = b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
LIES = {
    "overlap": ({"a": entry(), "b": entry((2,), (8, 16))}, 16, "overlaps another"),
    "the same bytes twice": ({"a": entry(), "b": entry()}, 16, "overlaps another"),
    "gap": ({"a": entry(), "b": entry((1,), (20, 24))}, 24, "behind a gap"),
    "out of bounds": ({"a": entry((4, 4), (0, 64))}, 16, "end at byte"),
    "bytes nobody owns": ({"a": entry()}, 20, "end at byte"),
    "giant shape": ({"a": entry((HUGE, HUGE))}, 16, "does not fit its bytes"),
    "giant and consistent": ({"a": entry((HUGE // 4,), (0, HUGE))}, 16, "end at byte"),
    "product that wraps around": ({"a": entry((1 << 32, 1 << 32), (0, 0))}, 0, "does not fit"),
    "negative shape": ({"a": entry((-2, -2))}, 16, "shape of 'a' is none"),
    "negative offsets": ({"a": entry(offsets=(-16, 0))}, 16, "not two numbers"),
    "backwards": ({"a": entry(offsets=(16, 0))}, 16, "does not fit"),
    "true is no number": ({"a": entry((True, 4))}, 16, "shape of 'a' is none"),
    "fractions": ({"a": entry((2.0, 2.0))}, 16, "shape of 'a' is none"),
    "number beyond all bounds": (
        b'{"a":{"dtype":"F32","shape":[1%s]}}' % (b"0" * 5000),
        4,
        "no JSON",
    ),
    "unknown type": ({"a": entry(dtype="F7")}, 16, "unknown type"),
    "type that is a list": ({"a": entry(dtype=["F32"])}, 16, "unknown type"),
    "more keys": ({"a": {**entry(), "pickle": "x"}}, 16, "has not dtype"),
    "no entry": ({"a": 3}, 16, "has not dtype"),
    "names twice": (b'{"a":%s,"a":%s}' % (ONE, ONE), 1, "'a' stands twice"),
    "keys twice": (
        b'{"a":{"dtype":"U8","dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        4,
        "'dtype' stands twice",
    ),
    "metadata that is no text": ({"__metadata__": {"a": 1}}, 0, "no mapping"),
    "NaN": (b'{"a":NaN}', 0, "NaN is no JSON"),
    "a list": (b"[]", 0, "no JSON object"),
    "deep": (b'{"a":' + b"[" * 100_000, 0, "no JSON object"),
    "not UTF-8": (b'{"\xff":1}', 0, "no JSON object"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_in_one_line(tmp_path, lie):
    header, size, message = LIES[lie]
    path = raw_file(tmp_path / "x.safetensors", header, bytes(size))
    with pytest.raises(UserError, match=message) as caught:
        read_tensor_file(path)
    assert (
        str(path) in str(caught.value)
        and "\n" not in str(caught.value)
        and len(str(caught.value)) < 400
    )


@pytest.mark.parametrize("length", [17, 1 << 30, (1 << 64) - 1])
def test_the_length_of_the_header_is_bounded_before_it_is_read(tmp_path, length):
    path = raw_file(tmp_path / "x.safetensors", b"{" + b" " * 15, length=length)
    with pytest.raises(UserError, match="its header is said to have"):
        read_tensor_file(path)


def test_a_file_of_a_few_bytes_a_folder_a_pipe_and_nothing(tmp_path):
    (tmp_path / "short").write_bytes(b"1234567")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # nobody writes into it: plain open() would wait for ever
    for name, message in (
        ("short", "7 bytes"),
        ("folder", "cannot"),
        ("pipe", "no plain file"),
        ("no", "missing"),
    ):
        with pytest.raises(UserError, match=message):
            read_tensor_file(tmp_path / name)


def test_what_it_takes_the_library_takes(tmp_path):
    """Every accepted header, with odd but honest layouts, is opened alike by safetensors."""
    honest = [
        {"a": entry()},
        {"b": entry((0,), (0, 0)), "a": entry()},
        {"z": entry((2,), (0, 8)), "a": entry((2,), (8, 16))},
        {"__metadata__": {"format": "pt"}, "a": entry((16,), (0, 16), "U8")},
    ]
    for header in honest:
        path = raw_file(tmp_path / "x.safetensors", header, bytes(range(16)))
        file_header = read_tensor_file(path)
        with safe_open(path, framework="pt") as file:
            assert set(file.keys()) == file_header.tensors.keys()
            for name, stored in file_header.tensors.items():
                raw = path.read_bytes()[stored.start : stored.stop]
                assert bytes(file.get_tensor(name).reshape(-1).view(torch.uint8).numpy()) == raw


def test_an_enormous_but_honest_header_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "MAX_HEADER_BYTES", 64)
    path = raw_file(tmp_path / "x.safetensors", {"a" * 64: entry()}, bytes(16))
    with pytest.raises(UserError, match="its header is said to have"):
        read_tensor_file(path)
