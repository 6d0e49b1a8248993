"""JSON objects in files: read with one line for the user if that fails, written for people to
read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmscale.errors import UserError
from mmscale.plain_file import read_plain

MAX_BYTES = 64 << 20  # a large tokenizer has 20


def read_object(path: Path, missing: str, damaged: str = "copy it again, whole") -> dict[str, Any]:
    """The object in ``path``. Raises `UserError` with the remedy for a file that is ``missing`` or
    ``damaged``.
    """
    try:
        tree = json.loads(read_plain(path, MAX_BYTES).decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: missing; {missing}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {damaged}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: not a JSON object; {damaged}")
    return tree


def write_object(path: Path, tree: dict[str, Any]) -> None:
    """Write ``tree``."""
    path.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
