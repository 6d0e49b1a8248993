"""Does every rank reach the same shards?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmscale.config import Config, SetConfig
from mmscale.data.index.manifest import Manifest, open_manifests
from mmscale.data.storage.remote_file import RemoteFault, open_beginning
from mmscale.data.storage.url import join_url
from mmscale.doctor.check import FAILED, OK, HealthCheck, RankPlace, complain, usual
from mmscale.errors import UserError

_PROBE = 512  # bytes, a tar header


def collect(config: Config) -> dict[str, dict[str, Any]]:
    """By data set: ``digest`` of its shards, how many ``shards``, or the ``fault`` why they cannot
    be read.
    """
    return {name: _read_set(data_set, config) for name, data_set in config.data.sets.items()}


def assess(collected: Mapping[RankPlace, Mapping[str, Mapping[str, Any]]]) -> HealthCheck:
    """A set that a rank cannot read, or sees otherwise than the others, fails."""
    faults, shards, later = dict[RankPlace, tuple[str, str]](), 0, list[str]()
    for name in dict.fromkeys(name for sets in collected.values() for name in sets):
        seen = {place: sets[name] for place, sets in collected.items()}
        sound = {place: facts["digest"] for place, facts in seen.items() if not facts["fault"]}
        norm = usual(sound) if sound else ""
        for place, facts in seen.items():
            if facts["fault"]:
                faults[place] = (FAILED, f"{name}: {facts['fault']}")
            elif facts["digest"] != norm:
                faults[place] = (
                    FAILED,
                    f"{name}: other shards ({facts['digest'][:12]}) than the others see "
                    f"({norm[:12]})",
                )
        if sound and not norm:
            later.append(name)
        shards += max((facts["shards"] for facts in seen.values()), default=0)
    if faults:
        return complain("shards", faults, collected)
    text = f"{shards} shards, the same from every rank"
    return HealthCheck(
        "shards", OK, text + (f"; built at the start: {', '.join(later)}" if later else "")
    )


def _read_set(data_set: SetConfig, config: Config) -> dict[str, Any]:
    if config.data.prepare and not any(Path(name).exists() for name in data_set.shards):
        return {"digest": "", "shards": 0, "fault": None}
    try:
        manifests = open_manifests(data_set.shards, config.data.cache)
        for manifest in manifests:
            for shard in {0, len(manifest.shards) - 1}:
                _read_ends(manifest, shard, config.data.cache.retries)
    except (UserError, RemoteFault, OSError) as error:
        return {"digest": "", "shards": 0, "fault": str(error)}
    digest = hashlib.sha256("".join(manifest.digest for manifest in manifests).encode()).hexdigest()
    return {
        "digest": digest,
        "shards": sum(len(manifest.shards) for manifest in manifests),
        "fault": None,
    }


def _read_ends(manifest: Manifest, shard: int, retries: int) -> None:
    """Read a few bytes of a shard. Raises `UserError` naming it."""
    place = manifest.place(shard)
    name, size = place.shard.name, place.shard.bytes
    if isinstance(place.base, str):
        try:
            with open_beginning(join_url(place.base, name), _PROBE, retries) as file:
                got, size_now = file.readinto(bytearray(_PROBE)), file.size
        except RemoteFault as fault:
            raise UserError(f"shard {name} cannot be fetched ({fault})") from None
    else:
        try:
            with open(place.base / name, "rb", buffering=0) as file:
                size_now = os.fstat(file.fileno()).st_size
                got = min(
                    len(file.read(_PROBE)),
                    len(os.pread(file.fileno(), _PROBE, max(0, size - _PROBE))),
                )
        except OSError as error:
            raise UserError(f"shard {name} cannot be read ({error.strerror})") from None
    if size_now != size or not got:
        raise UserError(f"shard {name} has {size_now} bytes, {size} when it was indexed")
