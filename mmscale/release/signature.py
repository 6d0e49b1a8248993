"""Who made a release: signatures by OpenSSF model-signing over every file of a folder, with an
elliptic-curve key.

The signature is a Sigstore bundle around an in-toto statement of all files' SHA-256; the
`model_signing` command and library check it too. It lies in the folder and is the one file that it
does not cover.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmscale.errors import UserError
from mmscale.plain_file import read_plain

NAME = "model.sig"
PRIVATE, PUBLIC = "private.pem", "public.pem"
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_MOST_BYTES = 16 << 20
_INSTALL = "signatures need OpenSSF model-signing; pip install 'mmscale[sign]'"


def make_keys(folder: Path) -> tuple[Path, Path]:
    """Make a key pair on the curve P-256: (private.pem, readable by its owner alone; public.pem).

    Raises:
        UserError: one of them is there already, or the folder cannot be written.
    """
    serialization, ec = _cryptography()
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    paths = folder / PRIVATE, folder / PUBLIC
    for path in paths:
        if os.path.lexists(path):
            raise UserError(f"{path}: is there already; keep it, or choose another folder")
    made: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, raw, mode in zip(paths, (private, public), (0o600, 0o644), strict=True):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            made.append(path)
            with open(handle, "wb") as file:
                file.write(raw)
    except OSError as error:
        for path in made:  # one without the other is no pair
            path.unlink(missing_ok=True)
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder"
        ) from None
    return paths


def check_private_key(path: Path) -> None:
    """Raise `UserError` if signing with ``path`` would fail, before anything is written."""
    _import()
    serialization, ec = _cryptography()
    try:
        key = serialization.load_pem_private_key(read_plain(path, _MOST_BYTES), None)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); make a key with mmscale keygen"
        ) from None
    except TypeError:
        raise UserError(
            f"{path}: is encrypted; decrypt it first: openssl pkey -in {path} -out FILE"
        ) from None
    except Exception:  # cryptography raises several kinds for what is no key
        raise UserError(f"{path}: is no PEM private key; make one with mmscale keygen") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise UserError(f"{path}: is no key on P-256, P-384 or P-521; make one with mmscale keygen")


def sign(folder: Path, private_key: Path) -> None:
    """Sign every file of ``folder``; writes model.sig there. Raises `UserError` for a key that
    cannot sign.
    """
    check_private_key(private_key)
    hashing, signing, _ = _import()
    config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    config.set_hashing_config(_covering(hashing, [])).sign(folder, folder / NAME)


def verify_signature(folder: Path, public_key: Path, ignored: Sequence[str] = ()) -> None:
    """Check the signature of ``folder`` and with it every file but ``ignored``.

    Raises:
        UserError: there is none, it is another key's, or of other contents; or the key is none.
    """
    hashing, _, verifying = _import()
    path = folder / NAME
    try:
        read_plain(path, _MOST_BYTES)
    except FileNotFoundError:
        raise UserError(
            f"{path}: missing; the release was not signed, or ask for its signature"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); copy the release again, whole"
        ) from None
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except OSError as error:
        raise UserError(
            f"{public_key}: cannot be read ({error.strerror}); check --public-key"
        ) from None
    except Exception:  # as above
        raise UserError(
            f"{public_key}: is no PEM public key on P-256, P-384 or P-521; check --public-key"
        ) from None
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the library prints its warnings
            config.set_hashing_config(_covering(hashing, ignored)).verify(folder, path)
    # Whatever a forged signature makes the libraries raise, it is no signature.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or "it was made with another key"
        raise UserError(
            f"{path}: does not prove this folder ({reason}); do not use it, or give the right "
            "--public-key"
        ) from None


def _covering(hashing: Any, ignored: Sequence[str]) -> Any:
    """Every file but the signature and ``ignored``; the library alone would pass over .git*.

    Links are followed, as a download cache is made of them; what they lead to is hashed.
    """
    config = hashing.Config().use_file_serialization(
        hashing_algorithm="sha256", allow_symlinks=True
    )
    config.set_ignored_paths(paths=[NAME, *ignored], ignore_git_paths=False)
    return config.set_allow_symlinks(True)


def _import() -> tuple[Any, Any, Any]:
    try:
        from model_signing import hashing, signing, verifying
    except ImportError:
        raise UserError(_INSTALL) from None
    return hashing, signing, verifying


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise UserError(_INSTALL) from None
    return serialization, ec
