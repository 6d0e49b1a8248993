"""One thin command per verb. Results go to stdout, progress and complaints to stderr; no logic
lives here.
"""

from __future__ import annotations

import argparse
import json
import os
import unicodedata
from collections.abc import Callable
from typing import Any

from mmscale.cli import (
    data,
    doctor,
    evaluate,
    export,
    keygen,
    model,
    plan,
    predict,
    train,
    tune,
    verify,
)
from mmscale.errors import UserError
from mmscale.messages import report
from mmscale.plugins import import_plugins
from mmscale.version import __version__

EPILOG = """\
examples:
  mmscale train configs/train/digits.yaml train.steps=200
  torchrun --nproc-per-node 2 -m mmscale train configs/train/digits.yaml parallel.strategy=fsdp
  mmscale eval runs/digits
  mmscale export runs/digits --out release
  mmscale verify release
"""

# In the order in which a user needs them, and `--help` lists them.
COMMANDS = (data, plan, doctor, train, tune, model, predict, evaluate, export, keygen, verify)


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exits with 0, with 2 and one line on stderr for bad input; a traceback is
    a bug.
    """
    parser = build_parser()
    arguments, left = parser.parse_known_args(argv)
    # key=value may stand anywhere, also behind options, which argparse does not take.
    if all("=" in word and not word.startswith("-") for word in left) and hasattr(
        arguments, "overrides"
    ):
        arguments.overrides += left
    elif left:
        keys = (
            "; config keys are written key=value, such as train.steps=200"
            if hasattr(arguments, "overrides")
            else ""
        )
        parser.error(f"unrecognized arguments: {' '.join(left)}{keys}")
    run: Callable[[argparse.Namespace], Any] = arguments.run
    try:
        import_plugins(getattr(arguments, "plugins", ()))
        result = run(arguments)
        if result is not None and arguments.json:
            print(json.dumps(result, ensure_ascii=False))
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        report(f"error: {'' if rank == '0' else f'rank {rank}: '}{_shown(str(error))}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        report("interrupted")
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(0) from None  # the reader, such as head, has seen enough


def _shown(text: str) -> str:
    """``text`` in one line that hides nothing: names of files may hold what moves a terminal's
    cursor, or erases.
    """
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in hidden
        else character
        for character in text
    )


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="mmscale",
        description="Train, evaluate and release one fusion transformer over images, text and "
        "speech.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mmscale {__version__}")
    # DeepSpeed's launcher puts it before every command; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(verbs)
    return parser
