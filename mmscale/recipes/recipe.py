"""`mmscale train --recipe NAME SHARDS`: a config from the name of a job and a folder of shards.

A recipe is a file beside this one, with what the job is: tasks, augmentation, scores. Its first key
``fields`` says what samples must have. ``<label>``, ``<text>`` and ``<head>`` stand for the fields
of the user's data. Sizes and steps are fitted to the training samples (`choose`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmscale.config import Config, TaskConfig
from mmscale.config_file import config_from_tree, overlay, override_tree
from mmscale.data.index.build_index import has_index
from mmscale.data.index.dataset import Dataset
from mmscale.errors import UserError
from mmscale.messages import report
from mmscale.recipes.choose import fit
from mmscale.recipes.names import recipe_text
from mmscale.recipes.training_facts import TrainingFacts, read_facts
from mmscale.strict_yaml import read_yaml

TRAIN = "train"
_LABELS = ("label", "category", "class", "topic")  # names in a JSON, the likeliest first


def recipe_config(
    name: str,
    shards: str | Path,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    *,
    label: str = "",
    text: str = "",
) -> Config:
    """The config of a recipe for a folder of shards.

    Args:
        shards: a packed folder, or one with a folder for each split, of which ``train`` is learned
            and every other one scored.
        overrides: ``key=value``, over what the recipe says and chooses.
        plugins: modules to import.
        label: the field of the classes, such as json.topic; empty: json.label, or the like.
        text: the field of the texts; empty: text.

    Raises:
        UserError: no such recipe; a folder without an index, or without what the recipe needs; or
            as `config_from_tree`.
    """
    tree = read_yaml(recipe_text(name))
    splits = _splits(Path(shards))
    train = splits[TRAIN]
    text = text or "text"
    facts = read_facts(Dataset.open([str(train)]), text)
    found = {"text": text, "label": label}
    if "label" in tree["fields"] and not label:
        found["label"] = _find_label(train, facts)
    _check_fields(name, train, facts, tree.pop("fields"), found)
    found["head"] = TaskConfig(target=found["label"]).head_name()
    tree = _filled(tree, found)
    score = tree.pop("eval")
    data_set = tree["data"]["sets"].pop("shards")
    folder = Path(shards).resolve().name
    tree["data"]["sets"][_set_name(folder)] = {"shards": [str(train)], **data_set}
    held_out = [split for split in splits if split != TRAIN]
    if not held_out:
        report(
            f"{shards}: has no folder of held-out samples beside {TRAIN}, so nothing will be "
            "scored; pack one as test"
        )
    tree["eval"] = {split: {**score, "shards": [str(splits[split])]} for split in held_out}
    tree["run"] = {"dir": f"runs/{folder}"}
    tree = overlay(fit(facts), tree)
    source = f"--recipe {name}"
    override_tree(tree, source, overrides, plugins)
    return config_from_tree(tree, source)


def _splits(shards: Path) -> dict[str, Path]:
    """The training set, and the others that can be scored, by name."""
    if has_index(shards):
        return {TRAIN: shards}
    if not shards.is_dir():
        raise UserError(f"{shards}: no such folder; `mmscale data pack` makes one")
    splits = {path.name: path for path in sorted(shards.iterdir()) if has_index(path)}
    if TRAIN in splits:
        return splits
    if splits:
        raise UserError(
            f"{shards}: has {', '.join(splits)}, but no {TRAIN}; name the folder to learn from"
        )
    if any(shards.glob("*.tar")):
        raise UserError(f"{shards}: has shards, but no index; run `mmscale data index {shards}`")
    raise UserError(
        f"{shards}: holds no packed samples; `mmscale data pack SOURCE --out {shards}` makes them"
    )


def _find_label(train: Path, facts: TrainingFacts) -> str:
    for name in _LABELS:
        if name in facts.json:
            return f"json.{name}"
    if facts.cls:
        return "cls"
    has = ", ".join(f"json.{name}" for name in facts.json) or "no JSON and no cls"
    raise UserError(
        f"{train}: which field is the class? Samples have {has}; say it with --label FIELD"
    )


def _check_fields(
    name: str, train: Path, facts: TrainingFacts, needed: list[str], found: dict[str, str]
) -> None:
    there = {
        "image": facts.width > 0,
        "audio": facts.seconds > 0,
        "text": facts.characters > 0,
        "label": True,
    }
    missing = [field for field in needed if not there[field]]
    if missing:
        field = found["text"] if missing[0] == "text" else missing[0]
        remedy = "; say which field has it with --text FIELD" if missing[0] == "text" else ""
        raise UserError(f"{train}: no sample has {field}, which {name} learns from{remedy}")


def _filled(value: Any, found: dict[str, str]) -> Any:
    """The tree with the user's fields in the places of <label>, <text> and <head>."""
    if isinstance(value, dict):
        return {name: _filled(inner, found) for name, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, found) for inner in value]
    if isinstance(value, str) and value.startswith("<") and value.endswith(">"):
        return found[value[1:-1]]
    return value


def _set_name(folder: str) -> str:
    """A name that a key on the command line can have."""
    return "".join(letter if letter.isalnum() else "_" for letter in folder) or "data"
