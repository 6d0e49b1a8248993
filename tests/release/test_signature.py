"""Signatures of releases: who made them, with which keys, and what they cover."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from signed_release import keys as keys
from signed_release import release as release
from signed_release import run_dir as run_dir
from signed_release import signed as signed
from spoiling import complaint, first_shard, flip_last_bit

from mmscale.cli import main
from mmscale.errors import UserError
from mmscale.release import signature
from mmscale.release.export import ExportOptions, export
from mmscale.release.release_manifest import write_manifest
from mmscale.release.signature import make_keys
from mmscale.release.verify_release import verify_release


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
        run_dir,
        tmp_path / "older",
        run_dir / "checkpoints" / "step-00000005",
        ExportOptions(max_shard_bytes=60_000, private_key=keys[0]),
    )
    verify_release(tmp_path / "older", keys[1])
    shutil.copy(tmp_path / "older" / "model.sig", release / "model.sig")
    assert "does not prove this folder" in complaint(
        capsys, "verify", release, "--public-key", keys[1]
    )


def test_the_command_of_model_signing_accepts_it_too(signed, keys):
    command = [
        sys.executable, "-m", "model_signing", "verify", "key", str(signed),
        "--public_key", str(keys[1]), "--signature", str(signed / "model.sig"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stdout


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
