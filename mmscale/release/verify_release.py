"""Whether a release is what its maker wrote: files, hashes, signature, headers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmscale.checkpoint.tensor_file import read_tensor_file
from mmscale.errors import UserError
from mmscale.release import release_manifest, signature
from mmscale.release.open_release import is_release, read_release


def verify_release(
    folder: Path, public_key: Path | None = None, ignored: Sequence[str] = ()
) -> dict[str, Any]:
    """Check every file of ``folder`` but those named in ``ignored``.

    In turn: the headers of its tensor files, the names, sizes and SHA-256 of all files against
    manifest.json, the signature if a ``public_key`` is given, and that config, index and tensors of
    a release agree.

    Returns:
        ``folder``, ``files`` (how many were checked), ``bytes``, ``signed`` (has a signature),
        ``signature_checked``.

    Raises:
        UserError: for the first fault.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the folder of a release")
    for path in sorted(folder.glob("*.safetensors")):
        read_tensor_file(path, "copy the release again, whole")
    listed = release_manifest.read_manifest(folder)
    if listed is None:
        raise UserError(
            f"{folder / release_manifest.NAME}: missing; nothing can be verified, get the whole "
            "release"
        )
    release_manifest.check_file_names(folder, listed, {signature.NAME, *ignored})
    release_manifest.check_contents(folder, listed)
    if public_key is not None:
        signature.verify_signature(folder, public_key, ignored)
    if is_release(folder):
        read_release(folder, verify=False)
    return {
        "folder": str(folder),
        "files": len(listed),
        "bytes": sum(facts.size for facts in listed.values()),
        "signed": (folder / signature.NAME).exists(),
        "signature_checked": public_key is not None,
    }
