"""The house stays as it was built: arrows one way, one meaning a name, small files.

Read from the source alone: imports inside functions count, those for type checkers alone do not.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "mmscale"

# From the ground up. A room imports from the floors below it, never from its own height or above.
FLOORS = [
    ["errors", "prf", "durable", "plain_file", "messages", "version"],
    ["registry", "json_file", "strict_yaml", "gpu", "data.storage"],
    ["config", "batch", "plugins"],
    ["config_file", "data", "model"],
    ["data.fetching", "data.media", "data.objectives", "optim"],
    ["data.index", "parallel"],
    ["data.ingest", "data.planning", "recipes"],
    ["data.loading", "data.prefetching", "demo"],
    ["predict"],
    ["checkpoint"],
    ["release"],
    ["evaluate", "hub"],
    ["train"],
    ["capacity", "on_ray"],
    ["doctor", "inspect", "tune"],
    ["mmscale"],  # what `import mmscale` gives
    ["cli"],
    ["__main__"],
]
# Rooms that never know each other, whatever the floors say: they meet in the batch.
STRANGERS = [("model", "data"), ("data", "model"), ("data", "parallel"), ("model", "parallel")]
LONGEST_FILE = 500  # lines


@cache
def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    paths = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def imports(tree: ast.AST, known: set[str], package: str = "mmscale") -> Iterator[str]:
    """Modules of ours that a module imports, wherever the statement stands."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else str(node.module) for name in inner]
        else:
            yield from imports(node, known, package)
            continue
        yield from (name for name in names if name.split(".")[0] == package)


@cache
def graph(package: Path = PACKAGE) -> dict[str, set[str]]:
    """The modules that each module imports."""
    paths = modules(package)
    return {
        name: set(imports(ast.parse(path.read_text("utf-8")), set(paths), package.name)) - {name}
        for name, path in paths.items()
    }


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, in order; empty if there is none."""
    done: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(arrows.get(name, ())):
            cycle = walk(other, [*path, name])
            if cycle:
                return cycle
        done.add(name)
        return []

    return next((cycle for name in sorted(arrows) if (cycle := walk(name, []))), [])


def room(module: str) -> str:
    """The room of a module: a folder, a folder inside data/, or a file beside them."""
    parts = module.split(".")[1:]
    if not parts:
        return "mmscale"
    if parts[0] == "data" and len(parts) > 1 and (PACKAGE / "data" / parts[1]).is_dir():
        return f"data.{parts[1]}"
    return parts[0]


def names() -> dict[str, list[str]]:
    """Where every class and every type alias is made, by its name without underscores before it."""
    places = defaultdict(list)
    for module, path in modules().items():
        for node in ast.parse(path.read_text("utf-8")).body:
            made = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign) and not is_type_variable(node.value):
                targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
                made = [name for name in targets if name[0].isupper() and not name.isupper()]
            for name in made:
                places[name.lstrip("_")].append(module)
    return places


def is_type_variable(value: ast.expr) -> bool:
    """``T = TypeVar("T")``, whose name is a local matter of its module."""
    return isinstance(value, ast.Call) and ast.unparse(value.func).endswith("TypeVar")


def test_no_module_imports_itself_by_a_detour():
    cycle = circle(graph())
    assert not cycle, " → ".join(cycle)


def test_the_search_for_circles_finds_one(tmp_path):
    package = tmp_path / "made"
    package.mkdir()
    for name, text in {
        "__init__": "",
        "a": "import made.b",
        "b": "def f():\n    from made import c",
        "c": "from made.a import x",
        "d": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import made.a",
    }.items():
        (package / f"{name}.py").write_text(text)
    assert circle(graph(package)) == ["made.a", "made.b", "made.c", "made.a"]
    (package / "c.py").write_text("")
    graph.cache_clear()
    assert circle(graph(package)) == []


def test_every_arrow_points_down():
    height = {name: level for level, floor in enumerate(FLOORS) for name in floor}
    missing = {room(module) for module in modules()} - height.keys()
    assert not missing, f"rooms without a floor in {Path(__file__).name}: {sorted(missing)}"
    upward = [
        f"{module} imports {target}"
        for module, imported in graph().items()
        for target in imported
        if room(module) != room(target) and height[room(module)] <= height[room(target)]
    ]
    assert not upward, "\n".join(upward)


@pytest.mark.parametrize(("importer", "target"), STRANGERS)
def test_these_rooms_do_not_know_each_other(importer, target):
    arrows = [
        f"{module} imports {name}"
        for module, imported in graph().items()
        for name in imported
        if room(module).split(".")[0] == importer and room(name).split(".")[0] == target
    ]
    assert not arrows, "\n".join(arrows)


def test_a_name_has_one_meaning():
    twice = {name: where for name, where in names().items() if len(where) > 1}
    assert not twice, twice


def test_files_are_one_thing_each():
    long = {
        module: lines
        for module, path in modules().items()
        if (lines := len(path.read_text("utf-8").splitlines())) > LONGEST_FILE
    }
    assert not long, long
    assert not [module for module in modules() if module.endswith((".utils", ".util", ".helpers"))]


def test_the_test_of_a_module_is_found_by_its_name():
    """Or by its line in tests/README.md."""
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    table = re.findall(
        r"^\| (.*) \| (.*) \| `(.*)` \|$", (ROOT / "tests/README.md").read_text(), re.M
    )
    absent = [file for _, _, file in table if not (ROOT / "tests" / file).is_file()]
    assert not absent, absent
    listed = {
        ".".join(["mmscale", *folder.strip("`").split("/"), name]).replace("..", ".")
        for folder, names, _ in table
        for name in names.replace("`", "").split(", ")
    }
    own = {module for module in modules() if f"test_{module.rpartition('.')[2]}.py" in tests}
    packages = {module for module, path in modules().items() if path.stem.startswith("__")}
    assert not modules().keys() - own - listed - packages, "without a test of its name or a line"
    assert not listed - (modules().keys() - own), "with a line that is not needed"


def test_production_code_patches_nothing():
    assert "unittest" not in {
        name.split(".")[0]
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for name in _imported(node)
    }


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []
