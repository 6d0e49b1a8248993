"""Damaged tensor files, manifests, releases, checkpoints: opened correctly or refused in one line,
nothing else ever.

Correctly: what is accepted is what the safetensors library and a second reading say it is. No file
makes the process allocate more than a small multiple of its own size. `make fuzz` runs the same
tests with many more examples.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from checkpoints import relist
from data.test_fuzz import damage
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from small_run import save_run, small_config, write_shards

from mmscale.checkpoint.run_folder import load_run
from mmscale.checkpoint.tensor_file import map_tensors, read_tensor_file
from mmscale.errors import UserError
from mmscale.release.export import ExportOptions, export
from mmscale.release.open_release import load_release
from mmscale.release.release_manifest import read_manifest, write_manifest
from mmscale.release.signature import make_keys
from mmscale.release.verify_release import verify_release

EXAMPLES = int(os.environ.get("MMSCALE_FUZZ_EXAMPLES", "100"))
fuzz = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
_ROOM = 768 << 20  # what a process may map beyond what it has, while it reads files of some 100 kB

NUMBERS = st.one_of(
    st.integers(-2, 70),
    st.sampled_from([1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30, -(1 << 63)]),
    st.floats(),
    st.booleans(),
    st.none(),
)


@contextmanager
def little_memory() -> Iterator[None]:
    """Within it, an allocation that a lying size asks for fails instead of being made."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def check_refusal(error: UserError) -> None:
    message = str(error)
    assert message and "\n" not in message and len(message) < 700, message
    assert " object at 0x" not in message


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with a small checkpoint, its release in shards, and a key."""
    folder = tmp_path_factory.mktemp("made")
    write_shards(folder / "shards", count=4)
    config = small_config(folder / "run", folder / "shards")
    config.model.classes = {"digit": ["a", "b"]}
    run = save_run(config)
    private, public = make_keys(folder / "keys")
    export(
        run, folder / "release", options=ExportOptions(max_shard_bytes=60_000, private_key=private)
    )
    return folder, public


# --- headers


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Tensor files whose header is JSON, mostly honest, with a few entries that are not."""
    tree: dict[str, object] = {}
    at = 0
    for name in draw(st.lists(st.text(max_size=6), max_size=5)):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        dtype, width = draw(st.sampled_from([("F32", 4), ("BF16", 2), ("U8", 1), ("F64", 8)]))
        size = width
        for side in shape:
            size *= side
        tree[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    if tree and draw(st.booleans()):
        entry = tree[draw(st.sampled_from(sorted(tree)))]
        assert isinstance(entry, dict)
        wrong = draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
        entry[wrong] = draw(st.one_of(NUMBERS, st.text(max_size=4), st.lists(NUMBERS, max_size=4)))
    if draw(st.booleans()):
        tree["__metadata__"] = draw(
            st.one_of(NUMBERS, st.dictionaries(st.text(max_size=3), st.text(max_size=3)))
        )
    text = json.dumps(tree).encode()
    if draw(st.integers(0, 4)) == 0:
        text = text[:-1] + b"," + text[1:]  # every name twice
    length = draw(
        st.one_of(
            st.just(len(text)),
            st.integers(0, 2 * len(text)),
            st.sampled_from([1 << 40, (1 << 64) - 1]),
        )
    )
    data = draw(st.one_of(st.just(at), st.integers(0, 64)))
    return (
        struct.pack("<Q", length)
        + text
        + bytes(range(256)) * (data // 256)
        + bytes(range(data % 256))
    )


@fuzz
@given(raw=headers())
@example(raw=b"")
@example(raw=struct.pack("<Q", 2) + b"{}")
def test_headers(raw: bytes) -> None:
    """What is accepted, the library accepts with the same names, shapes, types and bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(raw)
        try:
            with little_memory():
                file_header = read_tensor_file(path)
        except UserError as error:
            check_refusal(error)
            return
        mapped = map_tensors(file_header)
        with safe_open(path, framework="pt") as file:
            assert set(file.keys()) == file_header.tensors.keys() == mapped.keys()
            for name, stored in file_header.tensors.items():
                tensor = file.get_tensor(name)
                assert torch.equal(mapped[name].nan_to_num(), tensor.nan_to_num())
                assert (tensor.dtype, tuple(tensor.shape)) == (stored.dtype, stored.shape)
                own = bytes(tensor.reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""
                assert own == raw[stored.start : stored.stop]


# --- releases

SMALL = [
    "config.json",
    "tokenizer.json",
    "manifest.json",
    "model.safetensors.index.json",
    "model.sig",
    "generation_config.json",
]


@fuzz
@given(name=st.sampled_from([*SMALL, "shard"]), change=damage(), sealed=st.booleans())
def test_damaged_releases(made, name: str, change: Callable[[bytes], bytes], sealed: bool) -> None:
    """``sealed``: the attacker writes the manifest anew, so that everything behind it meets the
    damage too.
    """
    folder, public = made
    with tempfile.TemporaryDirectory() as scratch:
        release = shutil.copytree(folder / "release", Path(scratch) / "release")
        path = sorted(release.glob("*.safetensors"))[1] if name == "shard" else release / name
        before = path.read_bytes()
        path.write_bytes(change(before))
        changed = path.read_bytes() != before
        if sealed and name not in ("manifest.json", "model.sig"):
            signed = (release / "model.sig").read_bytes()
            (release / "model.sig").unlink()
            write_manifest(release)
            (release / "model.sig").write_bytes(signed)
        try:
            with little_memory():
                predictor, _ = load_release(release)
                check_model(predictor.model, folder, path if changed else None)
        except UserError as error:
            check_refusal(error)
            assert changed
        try:
            verify_release(release, public)
            assert not changed or json_alike(name, before, path.read_bytes())
        except UserError as error:
            check_refusal(error)
            assert changed


def json_alike(name: str, text: bytes, other_text: bytes) -> bool:
    """The signature is no part of what is signed: white space, or what says nothing, may change in
    it.
    """
    return name in ("model.sig", "manifest.json") and len(text) > 0 and len(other_text) > 0


def check_model(model: torch.nn.Module, folder: Path, changed: Path | None) -> None:
    """Every parameter holds what a plain reading of its file says."""
    names = {}
    for path in sorted((changed.parent if changed else folder / "release").glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.nan_to_num(), names[name].nan_to_num()), name


@st.composite
def changed_numbers(draw: st.DrawFn) -> Callable[[str], str]:
    """One number of a JSON text is another."""
    which, value = draw(st.integers(0, 10_000)), draw(NUMBERS)

    def apply(text: str) -> str:
        numbers = list(re.finditer(r"(?<=: )-?\d+(\.\d+)?", text))
        match = numbers[which % len(numbers)]
        return text[: match.start()] + json.dumps(value) + text[match.end() :]

    return apply


@fuzz
@given(change=changed_numbers())
def test_configs_with_another_number(made, change: Callable[[str], str]) -> None:
    """Sizes that the weights do not have are refused before a model of that size is built."""
    folder, _ = made
    with tempfile.TemporaryDirectory() as scratch:
        release = shutil.copytree(folder / "release", Path(scratch) / "release")
        (release / "manifest.json").unlink()
        path = release / "config.json"
        path.write_text(change(path.read_text()))
        try:
            with little_memory():
                load_release(release)
        except UserError as error:
            check_refusal(error)


@fuzz
@given(change=damage())
@example(change=lambda raw: b"[" * 100_000)
def test_damaged_manifests(made, change: Callable[[bytes], bytes]) -> None:
    folder, _ = made
    raw = (folder / "release" / "manifest.json").read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "manifest.json").write_bytes(change(raw))
        try:
            with little_memory():
                files = read_manifest(Path(scratch))
        except UserError as error:
            check_refusal(error)
            return
        assert files is not None
        tree = json.loads((Path(scratch) / "manifest.json").read_text())
        assert {name: (facts.size, facts.sha256) for name, facts in files.items()} == {
            name: (facts["size"], facts["sha256"]) for name, facts in tree["files"].items()
        }


# --- checkpoints


@fuzz
@given(
    name=st.sampled_from(["state.json", "weights", "config.yaml", "tokenizer.json"]),
    change=damage(),
    listed=st.booleans(),
)
def test_damaged_checkpoints(
    made, name: str, change: Callable[[bytes], bytes], listed: bool
) -> None:
    """``listed``: state.json is made to agree with the damaged file."""
    folder, _ = made
    with tempfile.TemporaryDirectory() as scratch:
        run = shutil.copytree(folder / "run", Path(scratch) / "run")
        (checkpoint,) = (run / "checkpoints").iterdir()
        path = {
            "state.json": checkpoint / "state.json",
            "weights": next(checkpoint.glob("*.safetensors")),
            "config.yaml": run / "config.yaml",
            "tokenizer.json": run / "tokenizer.json",
        }[name]
        path.write_bytes(change(path.read_bytes()))
        if listed and name == "weights":
            relist(checkpoint)
        try:
            with little_memory():
                load_run(run)
        except UserError as error:
            check_refusal(error)


def test_undamaged_ones_are_opened(made) -> None:
    """Otherwise the tests above would prove nothing."""
    folder, public = made
    with little_memory():
        load_release(folder / "release")
        load_run(folder / "run")
    verify_release(folder / "release", public)
