"""Registers our classes with `transformers` in programs that import mmscale, before it or after it.

`transformers` looks for no models of other packages (5.24), so they must be registered with its
auto modules. Importing those here would cost every program that imports mmscale some seconds. So
what is imported already is registered at once. For the rest a finder waits in `sys.meta_path`: it
registers each module when the program itself imports it, and is gone after the third. A program
that does not import mmscale is never touched.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType

_AUTO = "transformers.models.auto."


def _register_config(module: ModuleType) -> None:
    from mmscale.hub.config import MmscaleConfig

    module.CONFIG_MAPPING.register(MmscaleConfig.model_type, MmscaleConfig, exist_ok=True)


def _register_model(module: ModuleType) -> None:
    from mmscale.hub.config import MmscaleConfig
    from mmscale.hub.model import MmscaleModel

    module.AutoModel.register(MmscaleConfig, MmscaleModel, exist_ok=True)


def _register_processor(module: ModuleType) -> None:
    from mmscale.hub.config import MmscaleConfig
    from mmscale.hub.processor import MmscaleProcessor

    module.AutoProcessor.register(MmscaleConfig, MmscaleProcessor, exist_ok=True)


_REGISTER: dict[str, Callable[[ModuleType], None]] = {
    _AUTO + "configuration_auto": _register_config,
    _AUTO + "modeling_auto": _register_model,
    _AUTO + "processing_auto": _register_processor,
}
_waiting = set(_REGISTER)  # modules that are not registered with yet
_warned = False


def install() -> None:
    """Register with what is imported, and wait for the rest. More calls change nothing."""
    if len(_waiting) < len(_REGISTER) or _FINDER in sys.meta_path:
        return
    sys.meta_path.insert(0, _FINDER)
    for name in _REGISTER:
        module = sys.modules.get(name)
        if module is not None:
            _register(name, module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds an awaited module as always, with a loader that registers our classes after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _waiting:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader) -> None:
        self._inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        # The module keeps the loader that it would have without us.
        module.__spec__.loader = module.__loader__ = self._inner
        self._inner.exec_module(module)
        _register(module.__name__, module)


_FINDER = _Finder()


def _register(name: str, module: ModuleType) -> None:
    """A program that needs `transformers` for something else must not fail because of us."""
    global _warned
    try:
        _REGISTER[name](module)
    except Exception as error:  # a version of transformers that is not ours may lack anything
        if not _warned:
            _warned = True
            warnings.warn(
                f"mmscale: this version of transformers cannot open its releases ({error}); "
                "pip install 'mmscale[pretrained]'",
                stacklevel=2,
            )
    _waiting.discard(name)
    if not _waiting:
        # A new list: another thread may be walking through the old one.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not _FINDER]
