"""Nothing about a signed release can be changed, added, removed or exchanged without `mmscale
verify` telling it.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file
from small_run import save_run, small_config, write_shards

import mmscale
from mmscale.cli import main
from mmscale.errors import UserError
from mmscale.release import signature
from mmscale.release.export import ExportOptions, export
from mmscale.release.manifest import write_manifest
from mmscale.release.signature import make_keys
from mmscale.release.verify_release import verify_release


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_shards(folder / "shards", count=4)
    return save_run(small_config(folder / "run", folder / "shards"), steps=(5, 9))


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return make_keys(tmp_path_factory.mktemp("keys") / "mine")


@pytest.fixture(scope="module")
def signed(run_dir, keys, tmp_path_factory):
    out = tmp_path_factory.mktemp("signed") / "release"
    export(run_dir, out, options=ExportOptions(max_shard_bytes=60_000, private_key=keys[0]))
    return out


@pytest.fixture
def release(signed, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(signed, tmp_path / "release")


def complaint(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        main([str(one) for one in arguments])
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


def swap(release):
    one, two = sorted(release.glob("model-*.safetensors"))[:2]
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


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


def test_an_attacker_who_writes_the_manifest_anew_is_stopped_by_the_signature(
    capsys, release, keys
):
    flip_last_bit(first_shard(release))
    held = (release / "model.sig").read_bytes()
    (release / "model.sig").unlink()
    write_manifest(release)
    (release / "model.sig").write_bytes(held)
    verify_release(release)  # whole, as far as hashes alone can tell
    line = complaint(capsys, "verify", release, "--public-key", keys[1])
    assert "does not prove this folder" in line and "Hash mismatch" in line


def test_another_key_and_what_is_no_key(capsys, release, keys, tmp_path):
    other = make_keys(tmp_path / "other")
    assert "does not prove" in complaint(capsys, "verify", release, "--public-key", other[1])
    assert "no PEM public key" in complaint(
        capsys, "verify", release, "--public-key", release / "README.md"
    )
    assert "no PEM public key" in complaint(capsys, "verify", release, "--public-key", keys[0])
    assert "none.pem: cannot be read" in complaint(
        capsys, "verify", release, "--public-key", tmp_path / "none.pem"
    )


def test_a_signature_of_the_same_key_over_another_folder(capsys, run_dir, release, keys, tmp_path):
    """Both are honest releases; exchanging their signatures proves neither."""
    export(
        run_dir, tmp_path / "older", run_dir / "checkpoints" / "step-00000005",
        ExportOptions(max_shard_bytes=60_000, private_key=keys[0]),
    )  # fmt: skip
    verify_release(tmp_path / "older", keys[1])
    shutil.copy(tmp_path / "older" / "model.sig", release / "model.sig")
    assert "does not prove this folder" in complaint(
        capsys, "verify", release, "--public-key", keys[1]
    )


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


def test_the_command_of_model_signing_accepts_it_too(signed, keys):
    command = [
        sys.executable, "-m", "model_signing", "verify", "key", str(signed),
        "--public_key", str(keys[1]), "--signature", str(signed / "model.sig"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stdout


def test_opening_a_changed_release_is_refused(release):
    mmscale.load(release)
    flip_last_bit(first_shard(release))
    with pytest.raises(UserError, match="was changed, its SHA-256"):
        mmscale.load(release)
    mmscale.load(release, verify=False)  # asked for: only small files are hashed
    (release / "config.json").write_text(
        (release / "config.json").read_text().replace("which", "whach")
    )
    with pytest.raises(UserError, match=r"config\.json: was changed"):
        mmscale.load(release, verify=False)


def unlist(release, old):
    tree = json.loads((release / "manifest.json").read_text())
    del tree["files"][old]
    (release / "manifest.json").write_text(json.dumps(tree))


def empty_manifest(release):
    tree = json.loads((release / "manifest.json").read_text())
    (release / "manifest.json").write_text(json.dumps(tree | {"files": {}}))


UNLISTED = {
    "a manifest of nothing": (empty_manifest, "is not in manifest.json"),
    "config": (lambda r: unlist(r, "config.json"), r"config\.json: is not in"),
    "tokenizer": (lambda r: unlist(r, "tokenizer.json"), r"tokenizer\.json: is not in"),
    "preprocessor": (
        lambda r: unlist(r, "preprocessor_config.json"),
        r"preprocessor_config\.json: is",
    ),
    "index": (lambda r: unlist(r, "model.safetensors.index.json"), r"index\.json: is not in"),
    "shard": (lambda r: unlist(r, first_shard(r).name), r"model-00001.*: is not in"),
    "added weights": (
        lambda r: shutil.copy(first_shard(r), r / "model.safetensors"),
        r"model\.safetensors: is not",
    ),
    "added JSON": (
        lambda r: (r / "processor_config.json").write_text("{}"),
        r"processor_config\.json: is not",
    ),
    "two sets of weights, no manifest": (
        lambda r: (
            shutil.copy(first_shard(r), r / "model.safetensors"),
            (r / "manifest.json").unlink(),
        ),
        r"model\.safetensors: stands beside",
    ),
}


@pytest.mark.parametrize("fault", UNLISTED)
def test_nothing_is_read_that_the_manifest_does_not_list(release, fault):
    spoil, message = UNLISTED[fault]
    spoil(release)
    for verify in (True, False):
        with pytest.raises(UserError, match=message):
            mmscale.load(release, verify=verify)


def test_a_release_copied_over_another_is_not_opened_as_the_older_one(run_dir, release, tmp_path):
    """The index that was left over would name the older weights."""
    export(run_dir, tmp_path / "one file")
    shutil.copytree(tmp_path / "one file", release, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"is not in manifest\.json; remove it, or copy"):
        mmscale.load(release)


def test_without_a_manifest_a_release_is_opened_as_it_is(release):
    (release / "manifest.json").unlink()
    mmscale.load(release)


def test_the_manifest_is_what_sha256sum_says(signed):
    files = json.loads((signed / "manifest.json").read_text())["files"]
    assert files.keys() == {path.name for path in signed.iterdir()} - {"manifest.json", "model.sig"}
    for name, facts in files.items():
        raw = (signed / name).read_bytes()
        assert facts == {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


def test_a_name_cannot_hide_the_error(signed, tmp_path, capsys):
    release = shutil.copytree(signed, tmp_path / "release")
    (release / "\x1b[2K\rrelease: 9 files, all as listed\n\u202e").write_text("")
    told = complaint(capsys, "verify", release)
    assert "\\x1b[2K\\rrelease: 9 files, all as listed\\n\\u202e: was added" in told
    assert not any(sign in told.rstrip("\n") for sign in "\x1b\r\n\u202e")


def test_keys_are_private_and_never_overwritten(capsys, tmp_path):
    main(["keygen", "--out", str(tmp_path / "keys"), "--json"])
    made = json.loads(capsys.readouterr().out)
    assert oct(os.stat(made["private_key"]).st_mode & 0o777) == "0o600"
    assert "is there already" in complaint(capsys, "keygen", "--out", tmp_path / "keys")
    os.unlink(made["private_key"])
    assert "public.pem: is there already" in complaint(capsys, "keygen", "--out", tmp_path / "keys")
    assert os.listdir(tmp_path / "keys") == ["public.pem"], (
        "no private key beside another's public one"
    )


def test_a_public_key_that_cannot_be_written_leaves_no_private_one(capsys, tmp_path, monkeypatch):
    opened = os.open

    def full(path, *arguments, **settings):
        if str(path).endswith("public.pem"):
            raise OSError(28, "No space left on device")
        return opened(path, *arguments, **settings)

    monkeypatch.setattr(os, "open", full)
    assert "cannot be written (No space" in complaint(capsys, "keygen", "--out", tmp_path / "keys")
    assert os.listdir(tmp_path / "keys") == []


def test_a_key_that_cannot_sign_is_told_before_anything_is_written(run_dir, keys, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    def pem(key, secret=None):
        how = (
            serialization.BestAvailableEncryption(secret)
            if secret
            else serialization.NoEncryption()
        )
        return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)

    wrong = {
        "rsa": (pem(rsa.generate_private_key(65537, 2048)), "no key on P-256"),
        "curve": (pem(ec.generate_private_key(ec.SECP256K1())), "no key on P-256"),
        "locked": (pem(ec.generate_private_key(ec.SECP256R1()), b"secret"), "is encrypted"),
        "public": (keys[1].read_bytes(), "no PEM private key"),
        "text": (b"hello", "no PEM private key"),
    }
    for name, (raw, message) in wrong.items():
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(UserError, match=message):
            export(run_dir, tmp_path / "out", options=ExportOptions(private_key=tmp_path / name))
    assert not (tmp_path / "out").exists()


def test_without_the_library_it_says_what_to_install(monkeypatch, signed, keys):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(UserError, match=r"pip install 'mmscale\[sign\]'"):
        signature.verify_signature(signed, keys[1])
