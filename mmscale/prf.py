"""The project's own keyed random functions: frozen, versioned, the same on every machine.

Order, packing, augmentation and weight initialisation are *functions* of keys, never streams with
hidden state. Library generators are not used for them, because libraries change their streams
between releases.

The mixing function is the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable
pseudorandom number generators", OOPSLA 2014). Keys are derived by hashing their parts with BLAKE2b,
never by adding. Changing anything here changes every data order and every initial weight: raise
``VERSION`` if you must.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

VERSION = 1

_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1
_PIECE = 1 << 16  # numbers drawn at once


def derive_key(*parts: int | str) -> int:
    """Hash ``parts`` into a 64-bit key. ``derive_key(1, "2")`` and ``derive_key("1", 2)``
    differ.
    """
    text = "\x1f".join(f"{type(part).__name__[0]}{part}" for part in parts)
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"mmscale-prf-%d" % VERSION)
    return int.from_bytes(digest.digest(), "little")


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    return x ^ (x >> np.uint64(31))


def _mix_one(x: int) -> int:
    x = ((x ^ (x >> 30)) * int(_M1)) & _MASK
    x = ((x ^ (x >> 27)) * int(_M2)) & _MASK
    return x ^ (x >> 31)


def _bits_of_one(key: int, counter: int) -> int:
    """`bits` of a single counter, without an array."""
    return _mix_one(_mix_one(((counter + 1) * int(_GOLDEN)) & _MASK) ^ (key & _MASK))


def bits(key: int, counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 random bits for each counter value, as uint64 of the same shape."""
    return _bits(np.uint64(key & _MASK), counter)


def _bits(key: np.uint64 | NDArray[np.uint64], counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`bits` of one key, or of an array of keys that is broadcast with ``counter``."""
    with np.errstate(over="ignore"):
        return _mix(_mix((counter + np.uint64(1)) * _GOLDEN) ^ key)


def uniform(key: int, count: int, start: int = 0) -> NDArray[np.float64]:
    """``count`` numbers in [0, 1) with 53 random bits, for counters ``start … start+count-1``."""
    counter = np.arange(start, start + count, dtype=np.uint64)
    return _unit(bits(key, counter))


def uniform_rows(keys: Sequence[int], count: int) -> NDArray[np.float64]:
    """`uniform` of every key: float64 [len(keys), count], in the time of one."""
    return _unit(_bits(np.array(keys, np.uint64)[:, None], np.arange(count, dtype=np.uint64)))


def _unit(raw: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Random bits as numbers in [0, 1)."""
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(key: int, count: int, start: int = 0) -> NDArray[np.float32]:
    """``count`` standard normal float32 numbers (Box-Muller), one per counter, so any slice can be
    drawn alone.
    """
    values = np.empty(count, np.float32)
    fill_normal(key, values, start)
    return values


def fill_normal(key: int, values: NDArray[np.float32], start: int = 0) -> None:
    """`normal` into ``values``, a piece at a time in memory that stays in the cache and is not
    asked for anew.

    Holds Python's lock for next to none of the time, so several threads may fill parts of one
    array.
    """
    piece = min(_PIECE, len(values))
    ramp = np.arange(1, piece + 1, dtype=np.uint64)
    whole, spare = np.empty(piece, np.uint64), np.empty(piece, np.uint64)
    radius = np.empty(piece, np.float64)
    for first in range(0, len(values), max(1, piece)):
        out = values[first : first + piece]
        x, scratch, r = whole[: len(out)], spare[: len(out)], radius[: len(out)]
        angle = scratch.view(np.float64)
        np.add(ramp[: len(out)], np.uint64(start + first), out=x)
        x *= _GOLDEN
        _mix_into(x, scratch)
        x ^= np.uint64(key & _MASK)
        _mix_into(x, scratch)
        np.right_shift(x, np.uint64(32), out=scratch)
        np.copyto(r, scratch, casting="unsafe")
        r += 0.5
        r *= 2.0**-32
        np.log(r, out=r)
        r *= -2.0
        np.sqrt(r, out=r)
        x &= np.uint64(0xFFFFFFFF)
        np.copyto(angle, x, casting="unsafe")
        angle *= 2.0**-32 * 2.0 * np.pi
        np.cos(angle, out=angle)
        r *= angle
        np.copyto(out, r, casting="unsafe")


def _mix_into(x: NDArray[np.uint64], spare: NDArray[np.uint64]) -> None:
    """`_mix` in place."""
    for shift, factor in ((30, _M1), (27, _M2)):
        x ^= np.right_shift(x, np.uint64(shift), out=spare)
        x *= factor
    x ^= np.right_shift(x, np.uint64(31), out=spare)


class Draws:
    """Successive draws under one key, for code that needs a handful of numbers in a fixed order.

    Args:
        key: the key, or its parts (see `derive_key`), which are hashed at the first draw: most code
            that could draw has nothing to draw for.
    """

    def __init__(self, key: int | tuple[int | str, ...]) -> None:
        self._source = key
        self._next = 0

    @cached_property
    def _key(self) -> int:
        return derive_key(*self._source) if isinstance(self._source, tuple) else self._source

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One number in [low, high)."""
        # Plain integers: numpy costs more than it saves for a single number.
        raw = _bits_of_one(self._key, self._next)
        self._next += 1
        return low + (high - low) * ((raw >> 11) * 2.0**-53)

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """float64 [count] in [0, 1)."""
        start, self._next = self._next, self._next + count
        return uniform(self._key, count, start)

    def normals(self, count: int) -> NDArray[np.float32]:
        """float32 [count], standard normal."""
        start, self._next = self._next, self._next + count
        return normal(self._key, count, start)

    def integer(self, low: int, high: int) -> int:
        """One integer in [low, high); the bias of the float method is below 2**-40 for the ranges
        used.
        """
        return min(high - 1, low + int(self.uniform() * (high - low)))


class Permutation:
    """A keyed permutation of ``range(size)`` computed at any position in O(1), with no table.

    A balanced Feistel network of four rounds over the smallest even number of bits that holds
    ``size``; results outside the range walk the cycle until they fall inside (Black and Rogaway,
    "Ciphers with arbitrary finite domains", CT-RSA 2002). Fewer than four steps of walking on
    average.
    """

    ROUNDS = 4

    def __init__(self, key: int, size: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, got {size}")
        self.size = size
        self._half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._low = np.uint64((1 << int(self._half)) - 1)
        self._keys = [derive_key(key, "feistel", round_) for round_ in range(self.ROUNDS)]

    def _encrypt(self, x: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = x >> self._half, x & self._low
        for key in self._keys:
            left, right = right, left ^ (bits(key, right) & self._low)
        return (left << self._half) | right

    def __call__(self, positions: NDArray[np.integer] | int) -> NDArray[np.int64]:
        """Elements at ``positions`` (int array of any shape, each in [0, size)); int64 of the same
        shape.
        """
        out = np.atleast_1d(np.asarray(positions)).astype(np.uint64)
        assert out.size == 0 or int(out.max()) < self.size, "position outside the permutation"
        out = self._encrypt(out)
        outside = out >= self.size
        while outside.any():
            out[outside] = self._encrypt(out[outside])
            outside = out >= self.size
        return out.astype(np.int64).reshape(np.shape(positions))
