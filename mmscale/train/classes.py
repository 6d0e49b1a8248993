"""The classes of linear heads: found in the data once, and kept with the run, because the weights
follow them.

run.dir/classes.json    {head: [class, …]}
"""

from __future__ import annotations

import json
from pathlib import Path

from mmscale.config import Config, TaskConfig
from mmscale.data.index.dataset import Dataset
from mmscale.data.planning.token_counts import iterate_texts
from mmscale.durable import write_durably
from mmscale.errors import UserError

_NAME = "classes.json"
_MOST = 65_536


def find_classes(config: Config) -> dict[str, list[str]]:
    """The classes of every head that a task names: the config's, the run's own, or all that the
    data hold.

    Raises:
        UserError: a head that no task has, or one without classes, with too many to be classes, or
            with others than the run began with.
    """
    path = Path(config.run.dir) / _NAME
    tasks = [
        (data_set.shards, task)
        for data_set in config.data.sets.values()
        for task in data_set.tasks
        if task.objective == "classify"
    ]
    heads = list(dict.fromkeys(task.head_name() for _, task in tasks))
    for head in config.model.classes:
        if head not in heads:
            raise UserError(
                f"model.classes.{head}: no classify task has this head; there are "
                f"{', '.join(heads) or 'none'}"
            )
    kept = _read(path) if path.exists() else {}
    classes: dict[str, list[str]] = {}
    for head in heads:
        configured = config.model.classes.get(head)
        if configured and kept.get(head, configured) != configured:
            raise UserError(
                f"model.classes.{head}: are not those the run began with ({path}); restore them, "
                "or choose another run.dir"
            )
        classes[head] = configured or kept.get(head) or _in_data(config, head, tasks)
    return classes


def write_classes(run_dir: Path, classes: dict[str, list[str]]) -> None:
    """Keep them with the run."""
    write_durably(run_dir / _NAME, json.dumps(classes, ensure_ascii=False, indent=1) + "\n")


def _read(path: Path) -> dict[str, list[str]]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return {str(head): [str(label) for label in labels] for head, labels in tree.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); restore it, or choose another run.dir"
        ) from None


def _in_data(config: Config, head: str, tasks: list[tuple[list[str], TaskConfig]]) -> list[str]:
    labels: set[str] = set()
    for shards, task in tasks:
        if task.head_name() != head:
            continue
        for label in iterate_texts(Dataset.open(shards, config.data.cache), task.target):
            labels.add(label)
            if len(labels) > _MOST:
                raise UserError(
                    f"model.classes.{head}: {task.target} has more than {_MOST:,} different "
                    "values; is it a class?"
                )
    if not labels:
        raise UserError(
            f"model.classes.{head}: no sample has a class; name the classes, or give other shards"
        )
    return sorted(labels)
