"""One extent from its server, in one request where nothing fails, checked against the index."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from mmscale.data.fetching.extent import Extent, FieldCheck
from mmscale.data.storage.positional_io import pread_fully, pwrite_fully
from mmscale.data.storage.remote_file import CHUNK, RemoteFault, RemoteFile

# What differs from the index is asked for so often: the network may have changed it on its way.
_TRANSFERS = 2


@dataclass(kw_only=True)
class Arrival:
    """What it took to get one extent.

    Attributes:
        sound: whether every field was as the index has it.
        bytes: received, what was refused counted.
        source_s, disk_s: seconds spent on the server, and on writing and checking.
    """

    sound: bool = False
    bytes: int = 0
    requests: int = 0
    source_s: float = 0.0
    disk_s: float = 0.0


def receive(extent: Extent, checks: Iterable[FieldCheck], target: int, retries: int) -> Arrival:
    """Write the bytes of ``extent`` to the start of the open file ``target``.

    After a passing failure it goes on at the byte reached, as `RemoteFile` does. If a field has
    another CRC-32 than ``checks`` say, the extent is fetched once more, and kept as it is then.

    Raises:
        RemoteFault: it cannot be fetched, or the shard has another size than in the index.
        NoRanges: the server knows no ranges, and ``extent`` is not its whole shard.
        OSError: ``target`` cannot be written.
    """
    done, wanted, fault = Arrival(), list(checks), ""
    for _ in range(_TRANSFERS):
        fault = _copy(extent, target, retries, done)
        if not fault:
            began = time.monotonic()
            done.sound = all(_is_right(target, extent, check) for check in wanted)
            done.disk_s += time.monotonic() - began
            if done.sound:
                return done
    if fault:
        raise RemoteFault(fault)
    return done


def _copy(extent: Extent, target: int, retries: int, done: Arrival) -> str:
    """One transfer; returns why its bytes cannot be the indexed ones, if the sizes say so."""
    began, written_s = time.monotonic(), 0.0
    part = None if extent.is_whole else (extent.offset, extent.end)
    with RemoteFile(extent.url, retries, part) as source:
        done.requests += source.requests
        indexed = extent.shard.bytes
        if source.size != indexed:
            return f"it has {source.size} bytes, but {indexed} when it was indexed"
        buffer, at = memoryview(bytearray(min(CHUNK, extent.length))), 0
        while size := source.readinto(buffer):
            writes = time.monotonic()
            pwrite_fully(target, buffer[:size], at)
            written_s += time.monotonic() - writes
            at += size
        done.requests += source.requests - 1
    done.bytes += at
    done.disk_s += written_s
    done.source_s += time.monotonic() - began - written_s
    return ""


def _is_right(target: int, extent: Extent, check: FieldCheck) -> bool:
    data = pread_fully(target, check.size, check.offset - extent.offset)
    return len(data) == check.size and zlib.crc32(data) == check.crc
