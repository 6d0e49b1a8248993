"""Plug-ins: modules of the user's own that register kinds (`mmscale.registry`).

The one rule: a module is imported because *the caller* named it, and for no other reason. Callers
name plug-ins by ``--plugin``, by ``plugins:`` of the config file they give, or by `import_plugins`.
What a folder says (a run's config.yaml, a release's config.json) is compared with what was named,
by `check_named`, which imports nothing. docs/plugins.md says where the line runs.

A `Config` object that exists therefore names no plug-in that its maker did not name: processes that
get one from their parent (loader workers, workers of Ray) import what it names.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from mmscale.errors import UserError
from mmscale.registry import LOSSES, OBJECTIVES, REGISTRIES

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_LONGEST = 200  # characters of a name
_MOST_SHOWN = 3  # names in one message

_named: dict[str, None] = {}  # in the order of their import


def import_plugins(names: Iterable[str], directory: str | None = None) -> None:
    """Import modules by their dotted names, as the caller's own word; one that was is left alone.

    ``directory`` (default: the current one) is searched after everything that is installed.

    Raises:
        UserError: no dotted name; no such module; it fails when it is imported, registers nothing,
            registers a name that exists, or one half of an objective without the other.
    """
    for name in [names] if isinstance(names, str) else names:
        if name not in _named:
            _import(name, directory)
            _named[name] = None


def imported_plugins() -> list[str]:
    """What `import_plugins` has imported into this process, in that order."""
    return list(_named)


def check_named(tree: dict[str, Any], source: str) -> None:
    """Raise `UserError` unless the caller has named every plug-in of a config's ``tree``.

    Imports nothing: ``source``, which messages name, may come from anybody.
    """
    names = listed_plugins(tree, source)
    unknown = [name for name in dict.fromkeys(names) if name not in _named]
    for name in unknown:
        if fault := _name_fault(name):
            raise UserError(f"{source}: plugins: {name[:60]!r} {fault}")
    if unknown:
        shown = ", ".join(unknown[:_MOST_SHOWN])
        more = f" and {len(unknown) - _MOST_SHOWN} more" if unknown[_MOST_SHOWN:] else ""
        options = " ".join(f"--plugin {name}" for name in unknown[:_MOST_SHOWN])
        raise UserError(
            f"{source}: needs the plug-in {shown}{more}, and a folder imports nothing by itself; "
            f"if it is yours, add {options} (in Python: plugins={unknown[:_MOST_SHOWN]})"
        )


def listed_plugins(tree: dict[str, Any], source: str) -> list[str]:
    """``plugins`` of a config's tree; one name may stand alone. Raises `UserError`."""
    value = tree.get("plugins", [])
    names = value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"{source}: plugins: expected names of modules, got {str(name)[:60]!r}")
    return names


def _name_fault(name: str) -> str:
    """Why ``name`` is no plug-in's; empty: it may be one."""
    if len(name) > _LONGEST or not _NAME.fullmatch(name):
        return "is no name of a module; write it as in an import, such as my_package.my_module"
    if name.partition(".")[0] == "mmscale":
        return "is a part of mmscale, which needs no plug-in; leave it out"
    return ""


def _import(name: str, directory: str | None) -> None:
    if fault := _name_fault(name):
        raise UserError(f"plug-in {name[:60]!r} {fault}")
    _search_last(directory)
    before, modules = _added(), set(sys.modules)
    try:
        _import_module(name)
        if _added() == before and not (name in modules and _owns_kinds(name)):
            raise UserError(
                f"plug-in {name}: registers nothing; have it call register() of mmscale.registry "
                "when it is imported, or leave it out"
            )
        _check_halves(name)
    except UserError:
        _undo(name, before, modules)
        raise


def _undo(name: str, kinds: set[tuple[int, str]], modules: set[str]) -> None:
    """Forget what a failed import left, so that a notebook can import it again once corrected."""
    for number, kind in _added() - kinds:
        REGISTRIES[number].forget(kind)
    package = name.partition(".")[0]
    for module in set(sys.modules) - modules:
        if module.partition(".")[0] == package:
            del sys.modules[module]


def _import_module(name: str) -> None:
    importlib.invalidate_caches()  # the file may have been written a moment ago
    try:
        importlib.import_module(name)
    except UserError as error:
        raise UserError(f"plug-in {name}: {error}") from None
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            raise UserError(
                f"plug-in {name}: there is no module {missing}; install it, or start in the folder "
                "that holds it"
            ) from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"plug-in {name}: fails when it is imported ({reason}{_place(error.__traceback__)}); "
            "correct the module"
        ) from None


def _place(trace: TracebackType | None) -> str:
    """Where an import failed, if it was in the module's own code."""
    frames = [at for at in traceback.extract_tb(trace) if "importlib" not in at.filename]
    own = [at for at in frames if at.filename != __file__]
    return f", {own[-1].filename}:{own[-1].lineno}" if own else ""


def _search_last(directory: str | None) -> None:
    """Let modules of the current directory be found, as ``python -m`` does; the script ``mmscale``
    does not by itself.

    It comes last, so that no file there takes the place of an installed package. `python -P` and
    PYTHONSAFEPATH forbid it here, too.
    """
    if sys.flags.safe_path:
        return
    try:
        folder = directory or os.getcwd()
    except FileNotFoundError:  # it was removed
        return
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)


def _added() -> set[tuple[int, str]]:
    """What plug-ins have registered so far: the registry's number, the kind's name."""
    return {
        (number, kind) for number, registry in enumerate(REGISTRIES) for kind in registry.added()
    }


def _owns_kinds(name: str) -> bool:
    """Whether kinds come from the package of ``name``, which was imported before it was named."""
    package = name.partition(".")[0]
    sources = (REGISTRIES[number].source(kind) for number, kind in _added())
    return any(source.partition(".")[0] == package for source in sources)


def _check_halves(name: str) -> None:
    """An objective is two kinds: data's, and the loss."""
    data, model = OBJECTIVES.added(), LOSSES.added()
    for objective in sorted(data ^ model):
        registered, lacking = (
            ("OBJECTIVES", "LOSSES") if objective in data else ("LOSSES", "OBJECTIVES")
        )
        raise UserError(
            f"plug-in {name}: objective {objective!r} is registered in {registered} but not "
            f"in {lacking}; register its other half in {lacking}, too"
        )
