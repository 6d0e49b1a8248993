"""The model card of a release: what it is, what it learned from, how well it does, where it ends.

Its text is `card.md.jinja`; here are the values in it. Only what the run itself recorded is
reported; what is not known is said to be not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from mmscale.checkpoint.run_state import RunState
from mmscale.checkpoint.score_file import read_scores
from mmscale.config import CacheConfig, Config, MediaConfig, SetConfig
from mmscale.data.index.dataset import Dataset
from mmscale.errors import UserError
from mmscale.registry import OBJECTIVES, OPTIMIZERS
from mmscale.release.emissions import estimate_emissions
from mmscale.strict_yaml import write_yaml


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the exporter knows of the release."""

    run_dir: Path
    name: str  # of the release's folder
    parameters: int
    dtype: str
    averaged: bool  # moving averages of the weights
    merged: list[tuple[str, RunState]]  # runs whose mean it is; empty: one run's weights
    signed: bool
    sizes: dict[str, int]  # bytes of every file of the release so far


@dataclass(frozen=True, kw_only=True)
class _SetRow:
    """A data set in the card's table."""

    name: str
    weight: float
    samples: str
    learned: str
    digests: str


@dataclass(frozen=True, kw_only=True)
class _ScoreRow:
    """What one evaluation gave, in the card's table."""

    name: str
    task: str
    samples: str
    result: str
    digests: str
    command: str


def model_card(config: Config, state: RunState, release: CardFacts) -> str:
    """The card as Markdown with YAML front matter."""
    media = config.media
    scores, attacks = _scores(release, state.step)
    return (
        _environment()
        .get_template("card.md.jinja")
        .render(
            config=config,
            state=state,
            release=release,
            front=_front(config),
            calls=_calls(config),
            sets=[_set_row(*item, config.data.cache) for item in config.data.sets.items()],
            optimizer_line=OPTIMIZERS[config.train.optimizer.name].card,
            merged=[
                f"{Path(run).name} (step {its.step:,}, `{its.fingerprint[:16]}…`)"
                for run, its in release.merged
            ],
            scores=scores,
            attacks=attacks,
            pictures=_pictures(media),
            tokens_per_second=f"{media.sample_rate / (media.mel_hop * media.frames_per_token):.1f}",
            emissions=estimate_emissions(release.run_dir, state.step, config.run),
        )
    )


def _environment() -> SandboxedEnvironment:
    environment = SandboxedEnvironment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown is no HTML; the filter `cell` guards the tables
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": _cell, "thousands": "{:,}".format, "short": "{:g}".format}
    environment.globals["commands_of"] = _commands_of
    return environment


def _front(config: Config) -> str:
    front: dict[str, Any] = {
        "library_name": "mmscale",
        "tags": ["multimodal", "image", "text", "audio"],
    }
    if config.licence:
        front["license"] = "other"
        front["license_name"] = config.licence
    return write_yaml(front)


def _calls(config: Config) -> list[str]:
    """A line of Python for everything that was trained."""
    tasks = [task for data in config.data.sets.values() for task in data.tasks]
    lines = []
    for task in tasks:
        if task.objective == "next_token":
            inputs = "".join(
                f"{kind}=…, " for kind in dict.fromkeys(_kind(field) for field in task.input)
            )
            lines.append(f"model.answer({inputs}prompt={task.prompt!r})  # {task.target}")
    embedded = dict.fromkeys(_kind(field) for task in tasks for field in task.between)
    return [*lines, *(f"model.embed({field}=…)" for field in embedded)]


def _set_row(name: str, data: SetConfig, cache: CacheConfig) -> _SetRow:
    samples, digests = _identity(data, cache)
    learned = "; ".join(OBJECTIVES[task.objective].describe(task) for task in data.tasks)
    return _SetRow(name=name, weight=data.weight, samples=samples, learned=learned, digests=digests)


def _scores(release: CardFacts, step: int) -> tuple[list[_ScoreRow], list[_ScoreRow]]:
    """Rows of (plain scores, scores under attack). Both empty for weights that are not the run's
    own: `mmscale eval` keeps the scores of those alone.
    """
    if release.averaged or release.merged:
        return [], []
    plain, attacks = [], []
    for name, entry in read_scores(release.run_dir, step).items():
        if entry["scores"].get("task") == "robustness":
            attacks.append(_attack_row(name, entry))
        else:
            plain.append(_plain_row(name, entry))
    return plain, attacks


def _score_row(name: str, entry: Mapping[str, Any], samples: list[str], result: str) -> _ScoreRow:
    scores = entry["scores"]
    return _ScoreRow(
        name=name,
        task=str(scores.get("task")),
        samples=", ".join([str(scores.get("samples", "?")), *samples]),
        result=result,
        digests=", ".join(f"`{digest[:16]}…`" for digest in entry["digests"]),
        command=str(entry["command"]),
    )


def _plain_row(name: str, entry: Mapping[str, Any]) -> _ScoreRow:
    scores = entry["scores"]
    left_out = [f"{scores[key]} {key}" for key in ("skipped", "oversize") if scores.get(key)]
    return _score_row(name, entry, left_out, ", ".join(_numbers(scores)))


def _attack_row(name: str, entry: Mapping[str, Any]) -> _ScoreRow:
    scores = entry["scores"]
    result = _numbers(scores)
    if scores.get("budget"):
        result.append(f"({scores['budget']})")
    if "suspects" in scores:
        result.append(f"({scores['suspects']} suspects, {scores['checkpoints']} checkpoints)")
    return _score_row(name, entry, [], ", ".join(result))


def _numbers(scores: Mapping[str, Any]) -> list[str]:
    return [f"{key} {value:.4f}" for key, value in scores.items() if isinstance(value, float)]


def _commands_of(rows: list[_ScoreRow]) -> str:
    """Every command once, a line each."""
    return "\n".join(dict.fromkeys(row.command for row in rows))


def _identity(data_set: SetConfig, cache: CacheConfig) -> tuple[str, str]:
    """(number of samples, manifest digests) of a set, if its shards are on this machine."""
    try:
        dataset = Dataset.open(data_set.shards, cache)
    except UserError:
        return "not available", "not available (the shards were not on the exporting machine)"
    return f"{len(dataset):,}", ", ".join(f"`{digest}`" for digest in dataset.digests)


def _pictures(media: MediaConfig) -> str:
    if media.max_image_tokens:
        return (
            f"aspect ratio kept, at most {media.max_image_tokens} tokens of "
            f"{media.image_patch}-pixel squares"
        )
    rows, columns = media.image_grid(media.image_height, media.image_width)
    return f"resized to {media.image_width} x {media.image_height} pixels, {rows * columns} tokens"


def _cell(value: object) -> str:
    """Text that cannot break out of its table cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _kind(field: str) -> str:
    return field if field in ("image", "audio") else "text"
