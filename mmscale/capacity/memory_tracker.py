"""Bytes of tensors that live at once, by what they are, for real and for fake tensors alike."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

HOST = "host"  # the kind of what lies in the host's memory: no device's peak has it
_SENT = ("c10d", "_c10d_functional", "fsdp")  # namespaces of what gathers, scatters and sums


class Tracker(TorchDispatchMode):
    """While active, follows every storage that an operator makes, until it is freed.

    Attributes:
        peak: bytes when most were alive.
        at_peak: the same by kind.
        fresh: the kind of what an operator makes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        self.peak, self.at_peak = 0, Counter[str]()
        self.fresh = "activations"
        self.sent: Counter[str] = Counter()  # bytes given to collectives, by operator
        self.flops = 0  # of products, convolutions and attention kernels
        self._known: dict[int, list[Any]] = {}  # storage → [kind, bytes]

    def __enter__(self) -> Tracker:
        self._resize = torch.UntypedStorage.resize_
        tracker, resize = self, self._resize

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            done = resize(storage, size)
            tracker._resized(storage)
            return done

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign,assignment]
        super().__enter__()
        return self

    def __exit__(self, *unused: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*unused)

    def count(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """Say what tensors are that were made before, or by an operator that did not know."""
        for tensor in tensors:
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            self._see(local, kind)

    def rename(self, kind: str, to: str) -> None:
        """Say that what is alive and was thought to be of one ``kind`` is of another."""
        for known in self._known.values():
            if known[0] == kind:
                known[0] = to
        self.live[to] += self.live.pop(kind, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sends = func.namespace in _SENT
        # `FlopCounterMode` counts by the same table; its hooks on modules would keep what is
        # computed again alive.
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        if sends:
            inputs = [
                tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)
            ]
            self.sent[func._schema.name] += max((tensor.nbytes for tensor in inputs), default=0)
        for output in tree_leaves(out):
            if isinstance(output, Tensor):
                self._see(output, "buffers" if sends else None)
        return out

    def _see(self, tensor: Tensor, kind: str | None) -> None:
        if isinstance(tensor, DTensor) or tensor.device.type == "meta":
            return
        try:
            storage = tensor.untyped_storage()
        except (RuntimeError, NotImplementedError):
            return
        key = id(storage)
        known = self._known.get(key)
        if known is None:
            size = storage.nbytes()
            known = self._known[key] = [kind or self.fresh, size]
            self.live[known[0]] += size
            weakref.finalize(storage, self._freed, key)
        elif kind is not None and known[0] != kind:
            self.live[known[0]] -= known[1]
            known[0] = kind
            self.live[kind] += known[1]
        self._mark()

    def _resized(self, storage: torch.UntypedStorage) -> None:
        known = self._known.get(id(storage))
        if known is not None:
            self.live[known[0]] += storage.nbytes() - known[1]
            known[1] = storage.nbytes()
            self._mark()

    def _freed(self, key: int) -> None:
        kind, size = self._known.pop(key)
        self.live[kind] -= size

    def _mark(self) -> None:
        total = sum(self.live.values()) - self.live[HOST]
        if total > self.peak:
            self.peak, self.at_peak = total, self.live.copy()
