"""`mmscale keygen`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmscale.cli.verb import verb


def add(verbs: Any) -> None:
    """Declare the command `keygen` and its options."""
    keygen = verb(verbs, "keygen", _keygen, "make a key pair to sign releases with")
    keygen.add_argument(
        "--out", required=True, metavar="DIR", help="folder for private.pem and public.pem"
    )


def _keygen(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.release.signature import make_keys

    private, public = make_keys(Path(arguments.out))
    if not arguments.json:
        print(f"{private}: keep it secret\n{public}: give it to those who verify")
    return {"private_key": str(private), "public_key": str(public)}
