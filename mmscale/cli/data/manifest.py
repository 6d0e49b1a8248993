"""What `data pack` and `data index` print of the manifest they made."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from mmscale.messages import warn


def print_manifest(manifest: Any, quiet: bool) -> dict[str, Any]:
    """The facts, for --json; its first problems go to stderr, and unless ``quiet`` a summary to
    stdout.
    """
    facts = {
        "directory": str(manifest.root),
        "samples": len(manifest),
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.entries),
        "fields": manifest.fields,
        "problems": manifest.problem_count,
        "digest": manifest.digest,
    }
    for problem in itertools.islice(manifest.problems(), 20):
        warn(problem)
    if manifest.problem_count > 20:
        reasons = manifest.root / "index" / "problems.jsonl"
        warn(f"{manifest.problem_count} in all; see {reasons}")
    if not quiet:
        print(
            f"{manifest.root}: {facts['samples']:,} samples in {facts['shards']:,} shards of "
            f"{facts['bytes'] / 1e6:,.1f} MB in all, fields {', '.join(manifest.fields)}"
        )
        print(f"digest {manifest.digest}")
    return facts


def print_sets(out: Path, manifests: dict[str, Any], quiet: bool) -> dict[str, Any]:
    """`print_manifest` of each; the facts of the only one, or of all by the name of the set."""
    facts = {name: print_manifest(manifest, quiet) for name, manifest in manifests.items()}
    return facts[""] if facts.keys() == {""} else {"directory": str(out), "sets": facts}
