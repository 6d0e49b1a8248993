"""What was made last, kept in memory up to a number of things."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class BoundedCache(Generic[Value]):
    """The ``most`` values that were asked for last, by key. Pickled empty."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def recall(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of ``key``, made if it is not there."""
        if key not in self._values:
            self.keep(key, make())
        return self[key]

    def keep(self, key: Hashable, value: Value) -> None:
        """Keep ``value``, and forget what was asked for longest ago if there is too much."""
        self._values[key] = value
        if len(self._values) > self._most:
            self._values.popitem(last=False)

    def __getitem__(self, key: Hashable) -> Value:
        self._values.move_to_end(key)
        return self._values[key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def __reduce__(self) -> tuple[type[BoundedCache[Value]], tuple[int]]:
        return (BoundedCache, (self._most,))
