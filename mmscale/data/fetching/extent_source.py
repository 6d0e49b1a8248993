"""One extent from its server, in one request where nothing fails."""

from __future__ import annotations

from mmscale.data.fetching.extent import Extent


class NoRanges(Exception):
    """The server of a folder answers a request for a range with the whole file."""


def receive(extent: Extent, target: int, retries: int) -> int:
    """Write the bytes of ``extent`` to the start of the open file ``target``; returns how many
    requests it took.

    After a passing failure it goes on at the byte reached, as `remote_file.RemoteFile` does.

    Raises:
        RemoteFault: it cannot be fetched, or the shard has another size than in the index.
        NoRanges: the server knows no ranges, and ``extent`` is not the whole shard.
        OSError: ``target`` cannot be written.
    """
    raise NotImplementedError
