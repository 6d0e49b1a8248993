"""A release that was tampered with is refused in one line; a whole one is accepted."""

import json
import os
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file
from signed_release import keys as keys
from signed_release import release as release
from signed_release import run_dir as run_dir
from signed_release import signed as signed
from spoiling import complaint, first_shard, flip_last_bit

import mmscale
from mmscale.cli import main
from mmscale.errors import UserError
from mmscale.release.verify_release import verify_release


def swap(release):
    first_path, second_path = sorted(release.glob("model-*.safetensors"))[:2]
    first, second = first_path.read_bytes(), second_path.read_bytes()
    first_path.write_bytes(second)
    second_path.write_bytes(first)


def swap_tensors(release):
    """Two tensors of one shape change their places: same names, sizes and headers."""
    for path in sorted(release.glob("model-*.safetensors")):
        tensors = load_file(path)
        alike = [name for name in tensors if name.endswith("q_proj.weight")]
        if len(alike) == 2:
            tensors[alike[0]], tensors[alike[1]] = tensors[alike[1]], tensors[alike[0]]
            save_file(tensors, path)
            return
    flip_last_bit(first_shard(release))


def lie(release, change):
    path = first_shard(release)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header, [name for name in header if name != "__metadata__"])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def overlap(header, names):
    header[names[1]] = dict(header[names[0]])


def out_of_bounds(header, names):
    begin, end = header[names[0]]["data_offsets"]
    header[names[0]] |= {
        "shape": [(end - begin) // 4 + 10**12],
        "data_offsets": [begin, end + 4 * 10**12],
    }


TAMPERED = {
    "a flipped bit of a weight": (lambda r: flip_last_bit(first_shard(r)), "was changed"),
    "a changed card": (
        lambda r: (r / "README.md").write_text("trust me"),
        r"README\.md: was changed",
    ),
    "a changed prompt in the config": (
        lambda r: (r / "config.json").write_text(
            (r / "config.json").read_text().replace("which", "whach")
        ),
        r"config\.json: was changed",
    ),
    "an added file": (
        lambda r: (r / "modeling.py").write_text("import os"),
        r"modeling\.py: was added",
    ),
    "an added pickle": (lambda r: (r / "pytorch_model.bin").write_bytes(b"\x80\x04."), "was added"),
    "an added hidden file": (
        lambda r: (r / ".gitattributes").write_text("x"),
        r"\.gitattributes: was added",
    ),
    "an added folder": (lambda r: (r / "sub").mkdir(), "sub: was added"),
    "a missing file": (lambda r: (r / "tokenizer.json").unlink(), r"tokenizer\.json: missing"),
    "a missing shard": (
        lambda r: first_shard(r).unlink(),
        r"model-00001-of-\d+\.safetensors: missing",
    ),
    "shards swapped": (swap, "was changed"),
    "tensors swapped": (swap_tensors, "was changed"),
    "a link to nothing": (
        lambda r: ((r / "README.md").unlink(), (r / "README.md").symlink_to("nowhere")),
        "README.md: missing",
    ),
    "a pipe": (lambda r: ((r / "README.md").unlink(), os.mkfifo(r / "README.md")), "no plain file"),
    "no manifest": (lambda r: (r / "manifest.json").unlink(), r"manifest\.json: missing"),
    "a manifest that is none": (
        lambda r: (r / "manifest.json").write_text("[]"),
        r"manifest\.json: not a JSON object",
    ),
    "a manifest that names others": (
        lambda r: (r / "manifest.json").write_text(
            json.dumps({"format": "mmscale-manifest", "version": 1, "files": {"../x": {}}})
        ),
        "no name of a file",
    ),
    "an overlap": (lambda r: lie(r, overlap), "damaged .*overlaps"),
    "a tensor out of bounds": (lambda r: lie(r, out_of_bounds), "damaged"),
    "no signature": (lambda r: (r / "model.sig").unlink(), r"model\.sig: missing"),
    "an empty signature": (
        lambda r: (r / "model.sig").write_text(""),
        "does not prove this folder",
    ),
    "a cut signature": (
        lambda r: (r / "model.sig").write_bytes((r / "model.sig").read_bytes()[:400]),
        "does not prove",
    ),
}


@pytest.mark.parametrize("fault", TAMPERED)
def test_tampering_is_told_in_one_line(capsys, release, keys, fault):
    spoil, message = TAMPERED[fault]
    spoil(release)
    line = complaint(capsys, "verify", release, "--public-key", keys[1])
    assert re.search(message, line), line


def test_a_whole_release_is_accepted(capsys, signed, keys):
    main(["verify", str(signed), "--public-key", str(keys[1]), "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert (
        facts["signed"]
        and facts["signature_checked"]
        and facts["files"] == len(list(signed.iterdir())) - 2
    )
    main(["verify", str(signed)])
    assert "the signature was not checked" in capsys.readouterr().out


def test_what_a_download_adds_can_be_named(release, keys):
    (release / ".gitattributes").write_text("*.safetensors filter=lfs")
    (release / ".cache" / "huggingface").mkdir(parents=True)
    (release / ".cache" / "huggingface" / "x.lock").write_text("")
    with pytest.raises(UserError, match="was added"):
        verify_release(release, keys[1])
    verify_release(release, keys[1], [".gitattributes", ".cache"])


def test_links_into_a_download_cache_are_followed(release, keys, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for path in list(release.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(blobs / path.name)
    verify_release(release, keys[1])
    mmscale.load(release)
    flip_last_bit(blobs / first_shard(release).name)
    with pytest.raises(UserError, match="was changed"):
        verify_release(release, keys[1])


def test_a_name_cannot_hide_the_error(signed, tmp_path, capsys):
    release = shutil.copytree(signed, tmp_path / "release")
    (release / "\x1b[2K\rrelease: 9 files, all as listed\n\u202e").write_text("")
    message = complaint(capsys, "verify", release)
    assert "\\x1b[2K\\rrelease: 9 files, all as listed\\n\\u202e: was added" in message
    assert not any(sign in message.rstrip("\n") for sign in "\x1b\r\n\u202e")
