"""The header of a Hugging Face repository's README.md: its configs, and which files they hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmscale.data.account import Account, Notice
from mmscale.plain_file import read_plain
from mmscale.strict_yaml import read_yaml

_MOST_BYTES = 1 << 22

UNREADABLE = Notice(
    "README.md whose header is no YAML: the names of the files decide",
    "correct it, if it names configs or splits",
)


@dataclass(frozen=True)
class CardConfig:
    """One data set of several in a repository.

    Attributes:
        patterns: (split, pattern of paths); split ``""``: the names of files say it.
        is_default: whether it is taken when none is named.
    """

    patterns: list[tuple[str, str]]
    is_default: bool = False


def card_configs(repository: Path, account: Account) -> dict[str, CardConfig]:
    """The configs of README.md by name; empty where it names none."""
    try:
        text = read_plain(repository / "README.md", _MOST_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        account.note(UNREADABLE, f"{error}")
        return {}
    header = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if header is None:
        return {}
    try:
        card = read_yaml(header[1])
    except ValueError as error:
        account.note(UNREADABLE, str(error))
        return {}
    listed = card.get("configs") if isinstance(card, dict) else None
    found: dict[str, CardConfig] = {}
    for config in listed if isinstance(listed, list) else []:
        if isinstance(config, dict):
            name = str(config.get("config_name", "default"))
            patterns = _patterns(config)
            if patterns:
                found[name] = CardConfig(
                    patterns, config.get("default") is True or name == "default"
                )
    return found


def matching(files: list[Path], repository: Path, pattern: str) -> list[Path]:
    """Those of ``files`` whose path in the repository fits a pattern with ``*``, ``**`` and
    ``?``. Patterns lead nowhere else: only files that are known are compared.
    """
    fits = re.compile(_regular(pattern.removeprefix("./")))
    return [file for file in files if fits.fullmatch(file.relative_to(repository).as_posix())]


def _patterns(config: dict[str, Any]) -> list[tuple[str, str]]:
    folder = str(config.get("data_dir") or "").strip("/")
    files = config.get("data_files")
    if files is None:
        return [("", f"{folder}/**")] if folder else []
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    found = []
    for entry in files if isinstance(files, list) else [files]:
        split, paths = "", entry
        if isinstance(entry, dict):
            split, paths = str(entry.get("split", "")), entry.get("path", [])
        for path in paths if isinstance(paths, list) else [paths]:
            found.append((split, f"{folder}/{path}" if folder else str(path)))
    return found


def _regular(pattern: str) -> str:
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    made = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(made.get(part) or re.escape(part) for part in parts)
