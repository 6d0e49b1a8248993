"""Plug-ins as files, and a process without any."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmscale import plugins
from mmscale.registry import REGISTRIES

# Every import leaves the number of its process in a file beside the module.
NOTE = """
import os
with open(os.path.join(os.path.dirname(__file__), "imports.txt"), "a") as file:
    file.write(f"{os.getpid()}\\n")
"""
SHOUT = f"""
from mmscale.registry import NORMALISERS
{NOTE}
def shout(text):
    return text.upper()

NORMALISERS.register("shout", shout)
"""


def imports(folder: Path) -> set[str]:
    """The processes that have imported a plug-in below ``folder``."""
    return {line for file in folder.rglob("imports.txt") for line in file.read_text().split()}


@contextmanager
def without_plugins() -> Iterator[None]:
    """This process begins without plug-ins, and keeps none; their packages are named below."""
    named, path = dict(plugins._named), [*sys.path]
    before, modules = plugins._added(), set(sys.modules)
    plugins._named.clear()
    try:
        yield
    finally:
        plugins._named.clear()
        plugins._named.update(named)
        sys.path[:] = path
        for number, kind in plugins._added() - before:
            REGISTRIES[number].forget(kind)
        for name in set(sys.modules) - modules:
            if name.partition(".")[0] in ("house", "broken", "evil"):
                del sys.modules[name]


def write_house(folder: Path, name: str = "shout", text: str = SHOUT) -> None:
    """The package ``house`` in ``folder``, with a plug-in of that name."""
    (folder / "house").mkdir(exist_ok=True)
    (folder / "house" / "__init__.py").write_text("")
    (folder / "house" / f"{name}.py").write_text(text)
