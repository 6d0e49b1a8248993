"""Telling `transformers` of our classes when, and only if, somebody imports it.

`transformers` has no place where an installed package can name its models (5.24 looks for none), so
its auto modules are watched: each is imported as always, and then told. Importing mmscale therefore
imports neither `transformers` nor torch. `install` is called by ``import mmscale``, and through the
entry point that torch calls when it is imported (pyproject.toml, group torch.backends), so that
AutoModel and AutoProcessor work where mmscale is merely installed. (AutoConfig, where a program
imports nothing else of `transformers`, needs the ``import mmscale``.)
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType

_AUTO = "transformers.models.auto."


def _tell_config(module: ModuleType) -> None:
    from mmscale.hub.config import MmscaleConfig

    module.CONFIG_MAPPING.register(MmscaleConfig.model_type, MmscaleConfig, exist_ok=True)


def _tell_model(module: ModuleType) -> None:
    from mmscale.hub.config import MmscaleConfig
    from mmscale.hub.model import MmscaleModel

    module.AutoModel.register(MmscaleConfig, MmscaleModel, exist_ok=True)


def _tell_processor(module: ModuleType) -> None:
    from mmscale.hub.config import MmscaleConfig
    from mmscale.hub.processor import MmscaleProcessor

    module.AutoProcessor.register(MmscaleConfig, MmscaleProcessor, exist_ok=True)


_WATCHED: dict[str, Callable[[ModuleType], None]] = {
    _AUTO + "configuration_auto": _tell_config,
    _AUTO + "modeling_auto": _tell_model,
    _AUTO + "processing_auto": _tell_processor,
}
_pending: set[str] = set()  # watched modules that were half imported when the watch began

_warned = False


class _Watcher(importlib.abc.MetaPathFinder):
    """Finds a watched module as the other finders do, and tells it of our classes once it has
    run.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        register_pending()
        if fullname not in _WATCHED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, _WATCHED[fullname])
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader, tell: Callable[[ModuleType], None]) -> None:
        self._inner, self._tell = inner, tell

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = (
            self._inner
        )  # nobody need know that it was watched
        self._inner.exec_module(module)
        _attempt(self._tell, module)


def install() -> None:
    """Watch for `transformers`, or tell it at once where it was imported before; more calls change
    nothing.
    """
    if any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        return
    _pending.update(_WATCHED.keys() & sys.modules.keys())
    register_pending()
    sys.meta_path.insert(0, _Watcher())


def register_pending() -> None:
    """Tell the modules that were imported before the watch began, once they are whole.

    torch, which calls `install`, is itself imported by them. Called with every later import, and by
    our config when `transformers` makes one, which it does before it looks for a model or a
    processor.
    """
    for name in sorted(_pending):
        module = sys.modules.get(name)
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            _pending.discard(name)
            _attempt(_WATCHED[name], module)


def _attempt(tell: Callable[[ModuleType], None], module: ModuleType) -> None:
    """An import by a program that may not even know of mmscale must not fail because of us."""
    global _warned
    try:
        tell(module)
    except Exception as error:  # a version of transformers that is not ours may lack anything
        if not _warned:
            _warned = True
            warnings.warn(
                f"mmscale: this version of transformers cannot open its releases ({error}); "
                "pip install 'mmscale[pretrained]'",
                stacklevel=2,
            )
