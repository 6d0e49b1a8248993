"""`mmscale verify`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmscale.cli.verb import add_plugins, verb

VERIFY_EPILOG = """\
Without --public-key this proves that the folder is whole. It does not prove who made it. Get the
key from a source that you trust.

examples:
  mmscale verify release --public-key keys/public.pem
  mmscale verify downloaded --public-key keys/public.pem --ignore .gitattributes --ignore .cache
"""


def add(verbs: Any) -> None:
    """Declare the command `verify` and its options."""
    verify = verb(
        verbs, "verify", _verify, "check a release's files, hashes and signature", VERIFY_EPILOG
    )
    add_plugins(verify)
    verify.add_argument("folder", help="a release folder")
    verify.add_argument(
        "--public-key", metavar="FILE", help="PEM file of the maker's key: check the signature"
    )
    verify.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="NAME",
        help="a further file or folder that is allowed there (may be repeated)",
    )


def _verify(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.release.verify_release import verify_release

    key = Path(arguments.public_key) if arguments.public_key is not None else None
    facts = verify_release(Path(arguments.folder), key, arguments.ignore)
    if not arguments.json:
        print(
            f"{facts['folder']}: {facts['files']} files, {facts['bytes']:,} bytes, all as listed; "
            f"{_signature_state(facts)}"
        )
    return facts


def _signature_state(facts: dict[str, Any]) -> str:
    if facts["signature_checked"]:
        return "signed with this key"
    return "the signature was not checked (give --public-key)" if facts["signed"] else "not signed"
