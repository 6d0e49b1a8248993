"""`mmscale export`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from mmscale.cli.verb import add_plugins, verb
from mmscale.errors import UserError

EXPORT_EPILOG = """\
Memory does not grow with the model: some rows of one tensor at a time are read, cast, written and
hashed.

examples:
  mmscale export runs/mine --out release --dtype bfloat16 --shard-size 2GB
  mmscale keygen --out keys
  mmscale export runs/mine --out release --sign-key keys/private.pem
  mmscale export runs/one --merge runs/two --merge runs/three --out mean-of-three
"""
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?) *([kMG]?)B?")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def add(verbs: Any) -> None:
    """Declare the command `export` and its options."""
    export = verb(
        verbs,
        "export",
        _export,
        "write a release: safetensors with a model card, from the newest checkpoint",
        EXPORT_EPILOG,
    )
    add_plugins(export)
    export.add_argument("target", metavar="run_dir", help="a run directory")
    export.add_argument("--out", required=True, metavar="DIR", help="folder of the release")
    export.add_argument(
        "--checkpoint", metavar="DIR", help="use this checkpoint of the run instead of the newest"
    )
    export.add_argument(
        "--ema", action="store_true", help="use the moving averages of the weights (train.ema)"
    )
    export.add_argument(
        "--merge",
        action="append",
        default=[],
        metavar="RUN",
        help="take the mean of the weights with those of RUN, a run of the same model (may be "
        "repeated)",
    )
    export.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="type of the weights (default: float32, as they were trained)",
    )
    export.add_argument(
        "--shard-size",
        default="5GB",
        metavar="SIZE",
        help="largest weight file, such as 500MB (default: 5GB)",
    )
    export.add_argument(
        "--sign-key", metavar="FILE", help="private key (PEM) that signs the release"
    )
    export.add_argument(
        "--as",
        dest="form",
        choices=("mmscale", "qwen3"),
        default="mmscale",
        help="qwen3: the text path alone, as a folder that transformers opens as Qwen3",
    )


def _export(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.form == "qwen3":
        return _export_qwen3(arguments)
    assert arguments.form == "mmscale", f"--as {arguments.form}: unknown"
    from mmscale.release.export import ExportOptions, export

    options = ExportOptions(
        dtype=arguments.dtype,
        max_shard_bytes=_bytes(arguments.shard_size),
        ema=arguments.ema,
        merge=[Path(run) for run in arguments.merge],
        private_key=Path(arguments.sign_key) if arguments.sign_key is not None else None,
    )
    checkpoint = Path(arguments.checkpoint) if arguments.checkpoint is not None else None
    facts = export(Path(arguments.target), Path(arguments.out), checkpoint, options)
    if not arguments.json:
        signed = ", signed" if facts["signed"] else ""
        print(
            f"{arguments.out}: a release of {facts['parameters']:,} parameters{signed}; "
            "open it with mmscale.load()"
        )
    return facts


def _export_qwen3(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.release.qwen3 import export_qwen3

    for name in ("merge", "sign_key"):
        if getattr(arguments, name):
            raise UserError(
                f"--{name.replace('_', '-')}: not with --as qwen3; leave one of them out"
            )
    facts = export_qwen3(
        Path(arguments.target),
        Path(arguments.out),
        Path(arguments.checkpoint) if arguments.checkpoint is not None else None,
        ema=arguments.ema,
        dtype=arguments.dtype,
        max_shard_bytes=_bytes(arguments.shard_size),
    )
    if not arguments.json:
        print(
            f"{arguments.out}: a Qwen3 model of {facts['parameters']:,} parameters, for "
            "transformers"
        )
    return facts


def _bytes(text: str) -> int:
    match = _SIZE.fullmatch(text)
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise UserError(
            f"--shard-size {text}: no size; write it as 5GB, 500MB or a number of bytes"
        )
    return size
