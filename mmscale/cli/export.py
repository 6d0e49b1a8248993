"""`mmscale export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmscale.cli.verb import verb


def add(verbs: Any) -> None:
    """Declare the command `export` and its options."""
    export = verb(verbs, "export", _export, "newest checkpoint → a folder of safetensors with a model card")
    export.add_argument("target", metavar="run_dir", help="a run directory")
    export.add_argument("--ema", action="store_true", help="the moving averages of the weights (train.ema)")
    export.add_argument(
        "--as", dest="form", choices=("mmscale", "qwen3"), default="mmscale",
        help="qwen3: the text path alone, as a folder that transformers opens as Qwen3",
    )  # fmt: skip
    export.add_argument("--out", required=True, metavar="DIR", help="folder of the release")


def _export(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.checkpoint.release import export

    if arguments.form == "qwen3":
        from mmscale.checkpoint.qwen3 import export_qwen3

        facts = export_qwen3(Path(arguments.target), Path(arguments.out), arguments.ema)
        if not arguments.json:
            print(f"{arguments.out}: a Qwen3 model of {facts['parameters']:,} parameters, for transformers")
        return facts
    facts = export(Path(arguments.target), Path(arguments.out), ema=arguments.ema)
    if not arguments.json:
        print(
            f"{arguments.out}: a release of {facts['parameters']:,} parameters; open it with mmscale.load()"
        )
    return facts
