"""What README, CONTRIBUTING and docs/ name exists: links, anchors, paths, modules, config keys,
commands and their options; and every page is on the site.
"""

import argparse
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

from mmscale.cli import build_parser
from mmscale.config_file import describe_keys, load_config

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"(?<![\w/.$*<{-])([\w.-]+(?:/[\w.*-]+)*\.(?:py|md|yaml|yml|sh|sbatch))(?![\w/])")
MODULE = re.compile(r"`(mmscale(?:\.\w+)+)")
GROUPS = "data|eval|media|model|parallel|ray|robustness|run|train|tune"
KEY = re.compile(rf"(?<![\w./-])((?:{GROUPS})(?:\.(?:[a-z_]\w*|<name>))+)(?![\w(])")
# Where a name without the whole path may lie; what begins with a word of the second is a user's.
FOLDERS = ("", "docs", "mmscale", "launch", "configs")
USERS = ("runs/", "release/", "my_package/")
# A run's own files, an example's, and one that CONTRIBUTING says shall not be.
OTHERS = ("my.yaml", "best.yaml", "config.yaml", "other.yaml", "utils.py")
# Files that begin like a group of the config; the last part of such a word is no key.
SUFFIXES = ("md", "py", "yaml", "html", "jsonl", "json", "safetensors", "sig", "parquet")


@pytest.mark.parametrize("name", NAMES)
def test_links_and_anchors(name):
    assert broken_links(ROOT / name, (ROOT / name).read_text()) == []


@pytest.mark.parametrize("name", NAMES)
def test_files_and_modules(name):
    assert unknown_files((ROOT / name).read_text()) == []


@pytest.mark.parametrize("name", NAMES)
def test_config_keys(name):
    assert unknown_keys((ROOT / name).read_text()) == []


@pytest.mark.parametrize("name", NAMES)
def test_commands_and_options(name):
    assert unknown_options((ROOT / name).read_text()) == []


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md"])
def test_the_config_shown_is_read(name, tmp_path, monkeypatch):
    shown = next(body for kind, body in fences((ROOT / name).read_text()) if "# my.yaml" in body)
    (tmp_path / "my.yaml").write_text(shown)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    config = load_config(str(tmp_path / "my.yaml"), [])
    assert config.data.sets["pictures"].tasks[0].prompt == config.eval["topics"].prompt == "topic"


def test_every_page_is_on_the_site():
    listed = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [page.name for page in PAGES if page.parent == ROOT / "docs"]
    assert sorted(listed) == sorted(["index.md", *pages])


def test_every_room_is_on_the_map():
    text = (ROOT / "docs" / "architecture.md").read_text()
    shown = next(body for _, body in fences(text) if body.startswith("mmscale/\n"))
    rooms = [path for path in (ROOT / "mmscale").iterdir() if (path / "__init__.py").exists()]
    missing = [room.name for room in rooms if f"  {room.name}/" not in shown]
    assert rooms and missing == []


def test_readme_fits_two_screens():
    lines = (ROOT / "README.md").read_text().splitlines()
    cells = [cell for line in lines if line.startswith("|") for cell in line.split("|")]
    assert len(lines) <= 110 and max(map(len, cells)) <= 120


@pytest.mark.parametrize(
    ("check", "text", "fault"),
    [
        ("links", "[x](docs/none.md)", "docs/none.md"),
        ("links", "[x](docs/data.md#no-such-heading)", "docs/data.md#no-such-heading"),
        ("links", "[x](#nowhere)\n# Somewhere", "#nowhere"),
        ("files", "see `mmscale/data/none.py`", "mmscale/data/none.py"),
        ("files", "`configs/train/none.yaml`", "configs/train/none.yaml"),
        ("files", "`tests/docs/test_none*.py`", "tests/docs/test_none*.py"),
        ("files", "`mmscale.data.nothing`", "mmscale.data.nothing"),
        ("files", "`mmscale.prf.no_such_name`", "mmscale.prf.no_such_name"),
        ("keys", "`train.micro_bach`", "train.micro_bach"),
        ("keys", "`data.sets.mine.wait`", "data.sets.mine.wait"),
        ("options", "```\nmmscale trian my.yaml\n```", "mmscale trian my.yaml"),
        ("options", "```\nmmscale train my.yaml --rank 2\n```", "--rank"),
        ("options", "```\nmmscale data order my.yaml --step 2\n```", "--step"),
    ],
)
def test_a_fault_is_found(check, text, fault):
    assert {
        "links": lambda: broken_links(ROOT / "README.md", text),
        "files": lambda: unknown_files(text),
        "keys": lambda: unknown_keys(text),
        "options": lambda: unknown_options(text),
    }[check]() == [fault]


def fences(text: str) -> list[tuple[str, str]]:
    """Language and body of every block of code."""
    return FENCE.findall(text)


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links to files that are not there, or to headings that the file does not have."""
    broken = []
    for target in LINK.findall(FENCE.sub("", text)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (
            anchor and anchor not in anchors(file.read_text() if path else text)
        ):
            broken.append(target)
    return broken


def anchors(text: str) -> set[str]:
    """Of every heading, as code hosts and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def unknown_files(text: str) -> list[str]:
    """Paths, names of files and dotted modules that the repository does not have."""
    named = [name for name in FILE.findall(text) if not name.startswith(USERS)]
    missing = [name for name in named if not is_file(name)]
    return missing + [name for name in MODULE.findall(text) if not is_module(name)]


def is_file(name: str) -> bool:
    """Whether a path or a pattern is in the repository; a bare name may lie in any folder."""
    if "/" not in name:
        return name in bare_names() or name in OTHERS
    name = name.removeprefix("../")
    places = [name, name.replace("WAY", "ddp")]
    return any(list((ROOT / folder).glob(place)) for folder in FOLDERS for place in places)


@cache
def bare_names() -> frozenset[str]:
    tops = ("configs", "docs", "examples", "launch", "mmscale", "tests", "tools")
    inside = [path.name for top in tops for path in (ROOT / top).rglob("*.*")]
    return frozenset([*inside, *(path.name for path in ROOT.iterdir())])


def is_module(name: str) -> bool:
    """Whether a dotted name is a module, or something that a module defines or imports."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:end])
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if source.exists():
            text = source.read_text()
            return end == len(parts) or re.search(rf"\b{parts[end]}\b", text) is not None
    return False


def unknown_keys(text: str) -> list[str]:
    """Dotted config keys that `mmscale train --keys` does not list; Python code is left out."""
    prose = FENCE.sub(lambda fence: "" if fence[1] == "python" else fence[2], text)
    keys = [key for key in KEY.findall(prose) if key.rpartition(".")[2] not in SUFFIXES]
    return [key for key in keys if not is_key(key)]


def is_key(key: str) -> bool:
    parts = key.split(".")
    if parts[:2] in (["data", "sets"], ["tune", "space"]) and len(parts) > 2:
        parts[2] = "<name>"
    elif parts[0] == "eval" and len(parts) > 1:
        parts[1] = "<name>"
    return ".".join(parts) in known_keys()


@cache
def known_keys() -> frozenset[str]:
    """Every key, and every group of keys."""
    keys = [name.replace("[]", "") for name, _, _ in describe_keys()]
    parts = [key.split(".") for key in keys]
    return frozenset(".".join(of[:end]) for of in parts for end in range(1, len(of) + 1))


def unknown_options(text: str) -> list[str]:
    """Lines of code that call `mmscale` with a verb or an option that it does not have."""
    unknown = []
    for _, body in fences(text):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if line.startswith("mmscale ") else []
            parser, words = verb_of(words[1:])
            options = option_strings(parser) if parser else set()
            if line.startswith("mmscale ") and not parser:
                unknown.append(line)
            unknown += [word for word in words if word.startswith("--") and word not in options]
    return unknown


def verb_of(words: list[str]) -> tuple[argparse.ArgumentParser | None, list[str]]:
    """The parser that takes the rest of ``words``."""
    parser, deeper = build_parser(), True
    while deeper:
        deeper = False
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                if not words or words[0] not in action.choices:
                    return None, []
                parser, words, deeper = action.choices[words[0]], words[1:], True
    return parser, words


def option_strings(parser: argparse.ArgumentParser) -> set[str]:
    return {word for action in parser._actions for word in action.option_strings}
