"""What a pack makes of a source: its sets, samples and the account of what was left out."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from mmscale.config import MediaConfig
from mmscale.data.account import Account
from mmscale.data.ingest.layout import LayoutOptions
from mmscale.data.ingest.open_layout import SourceOptions
from mmscale.data.ingest.pack import pack
from mmscale.data.ingest.sources import open_source

Samples = dict[str, dict[str, bytes]]


def options(**words: Any) -> SourceOptions:
    """`SourceOptions` with the options of reading among them."""
    own = {name: words.pop(name) for name in ("layout", "split", "merge_splits") if name in words}
    return SourceOptions(**own, reading=LayoutOptions(**words))


def packed(source: Path, out: Path, **words: Any) -> dict[str, Samples]:
    """The samples of each set, read by Python's own tarfile, after a pack."""
    manifests = pack(source, out, options=options(**words), progress=False)
    for name, manifest in manifests.items():
        assert manifest.root == out / name and manifest.problem_count == 0
    return {name: read_shards(out / name) for name in manifests}


def account_of(source: Path, out: Path, **words: Any) -> str:
    """What a pack would tell, one line a kind."""
    account = Account()
    open_source(source, options(**words), MediaConfig(), out, account)
    return "\n".join(account.lines())


def read_shards(folder: Path) -> Samples:
    """Every sample in the order of the shards, read by Python's own tarfile."""
    samples: Samples = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for info in archive:
                directory, _, base = info.name.rpartition("/")
                stem, field = base.split(".", 1)
                stream = archive.extractfile(info)
                assert stream is not None
                key = f"{directory}/{stem}".lstrip("/")
                samples.setdefault(key, {})[field] = stream.read()
    return samples


def labels(samples: Samples) -> dict[str, Any]:
    """``json.label`` by key; None where there is none."""
    return {
        key: json.loads(fields["json"]).get("label") if "json" in fields else None
        for key, fields in samples.items()
    }
