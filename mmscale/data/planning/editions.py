"""What a run's data sets held from which step on: ``run.dir/data/``.

- ``history.json``: per set its editions: first step, manifest digests, sequences of an epoch;
- ``shards.<digest>.json``: the shards of a manifest that was used, to report what changed when
  it is another.

A resume compares the shards at hand with the last edition. A difference is refused by name, or
begins a new edition at the step of the resume when ``data.accept_changes`` asks for it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from mmscale.data.index.dataset import Dataset
from mmscale.data.index.manifest import Manifest
from mmscale.durable import make_folder, write_durably
from mmscale.errors import UserError

_NAMED = 3  # shards that a refusal names of each kind of change


@dataclass(frozen=True)
class Edition:
    """What a set held from ``from_step`` on."""

    from_step: int
    digests: list[str]
    sequences_per_epoch: int


class EditionHistory:
    """The editions of every set of a run, oldest first, by name of the set."""

    def __init__(self, run_dir: Path | None = None) -> None:
        """Read what ``run_dir`` recorded, if anything. Raises `UserError` if the record is
        damaged.
        """
        self._folder = None if run_dir is None else run_dir / "data"
        self.editions: dict[str, list[Edition]] = {}
        if self._folder is None or not (self._folder / "history.json").exists():
            return
        path = self._folder / "history.json"
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            self.editions = {
                name: [Edition(**edition) for edition in editions]
                for name, editions in tree.items()
            }
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}: damaged ({error}); restore it, or choose another run.dir"
            ) from None

    def resume(
        self, name: str, dataset: Dataset, sequences_per_epoch: int, step: int, accept: bool
    ) -> None:
        """Compare a set with the record, for a run that resumes at ``step``.

        Raises:
            UserError: the set holds other shards than before and ``accept`` is false; names the
                difference.
        """
        # An edition that began later was given up when the run went back to an older checkpoint.
        kept = [edition for edition in self.editions.get(name, []) if edition.from_step < step]
        now = Edition(step if kept else 0, dataset.digests, sequences_per_epoch)
        if (
            kept
            and kept[-1].digests == now.digests
            and kept[-1].sequences_per_epoch == sequences_per_epoch
        ):
            self.editions[name] = kept
            return
        if kept and kept[-1].digests == now.digests:
            raise UserError(
                f"data.sets.{name}: its packing changed (tasks, tokenizer, media.* or data sizes); "
                "restore them, or choose another run.dir"
            )
        if kept and not accept:
            raise UserError(
                f"data.sets.{name}: {self._difference(kept[-1], dataset)} since step "
                f"{kept[-1].from_step}; restore the shards, or continue with these from step "
                f"{step} by data.accept_changes=true"
            )
        self.editions[name] = [*kept, now]

    def save(self, datasets: dict[str, Dataset]) -> None:
        """Write the record and the lists of shards to the run's folder."""
        assert self._folder is not None, "a history without a run has nowhere to lie"
        make_folder(self._folder)
        for dataset in datasets.values():
            for manifest in dataset.manifests:
                path = self._shards_path(manifest.digest)
                if not path.exists():
                    listed = [[shard.name, shard.sha256] for shard in manifest.entries]
                    write_durably(
                        path, json.dumps({"folder": str(manifest.base), "shards": listed})
                    )
        tree = {
            name: [dataclasses.asdict(edition) for edition in editions]
            for name, editions in self.editions.items()
        }
        write_durably(self._folder / "history.json", json.dumps(tree))

    def _difference(self, before: Edition, dataset: Dataset) -> str:
        """One line that names what changed: folders, or shards added, removed and replaced."""
        old, new = before.digests, {manifest.digest: manifest for manifest in dataset.manifests}
        if sorted(old) == sorted(new):
            return "its folders are named in another order"
        gone = [self._shards_of(digest) for digest in old if digest not in new]
        come = [manifest for digest, manifest in new.items() if digest not in old]
        if len(gone) != len(come) or any(shards is None for shards in gone):
            return f"it has {len(new)} folders of shards instead of {len(old)}, or other ones"
        changes = []
        for shards, manifest in zip(gone, come, strict=True):
            assert shards is not None
            changes.append(_compare(shards, manifest))
        return "; ".join(changes)

    def _shards_of(self, digest: str) -> dict[str, str] | None:
        try:
            tree = json.loads(self._shards_path(digest).read_text(encoding="utf-8"))
            return {str(name): str(sha256) for name, sha256 in tree["shards"]}
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _shards_path(self, digest: str) -> Path:
        assert self._folder is not None
        return self._folder / f"shards.{digest}.json"


def _compare(before: dict[str, str], manifest: Manifest) -> str:
    now = {shard.name: shard.sha256 for shard in manifest.entries}
    parts = []
    for change, names in (
        ("added", now.keys() - before.keys()),
        ("removed", before.keys() - now.keys()),
        ("replaced", {name for name in now.keys() & before.keys() if now[name] != before[name]}),
    ):
        if names:
            listed = sorted(names)
            more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
            verb = "was" if len(listed) == 1 else "were"
            parts.append(f"{', '.join(listed[:_NAMED])}{more} {verb} {change}")
    difference = ", ".join(parts) or "other samples of the same shards are used"
    return f"{manifest.base}: {difference}"
