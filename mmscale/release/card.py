"""The model card of a release: what it is, what it learned from, how well it does, where it ends.

Only what the run itself recorded is told; what is not known is said to be not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmscale.checkpoint.run_state import RunState
from mmscale.checkpoint.score_file import read_scores
from mmscale.config import CacheConfig, Config, MediaConfig, SetConfig, TaskConfig
from mmscale.data.index.dataset import Dataset
from mmscale.errors import UserError
from mmscale.release.emissions import emissions_section

_OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon with AdamW"}


@dataclass(frozen=True)
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


def model_card(config: Config, state: RunState, told: CardFacts) -> str:
    """The card as Markdown with YAML front matter."""
    front: dict[str, Any] = {
        "library_name": "mmscale",
        "tags": ["multimodal", "image", "text", "audio"],
    }
    if config.licence:
        front["license"] = "other"
        front["license_name"] = config.licence
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n",
        f"# {told.name}\n",
        f"{config.description or 'No description was given (config key `description`).'}\n",
        f"A fusion transformer over images, text and speech with {told.parameters:,} parameters "
        f"({told.dtype}), "
        f"trained with mmscale for {state.step:,} steps.\n",
        _use(told.name, config),
        _data(config),
        _training(config, state, told),
        _scores(told, state.step),
        _sizes(config, told),
        emissions_section(told.run_dir, state.step, config.run)
        + ("Of the first of the merged runs alone.\n" if told.merged else ""),
        _integrity(told),
        _limits(config, state),
    ]
    return "\n".join(sections)


def _use(name: str, config: Config) -> str:
    plugins = f", plugins={config.plugins}" if config.plugins else ""
    lines = ["import mmscale", "", f'model = mmscale.load("{name}"{plugins})']
    tasks = [task for one in config.data.sets.values() for task in one.tasks]
    for task in tasks:
        if task.objective == "next_token":
            inputs = "".join(
                f"{kind}=…, " for kind in dict.fromkeys(_kind(field) for field in task.input)
            )
            lines.append(f"model.answer({inputs}prompt={task.prompt!r})  # {task.target}")
    for field in dict.fromkeys(_kind(field) for task in tasks for field in task.between):
        lines.append(f"model.embed({field}=…)")
    code = "\n".join(lines)
    return f"## Use\n\n```python\n{code}\n```\n\n`classify`, `transcribe` and `describe` are in `help(model)`.\n"


def _data(config: Config) -> str:
    lines = [
        "## Training data",
        "",
        f"Licence: {config.licence or 'not given (config key `licence`)'}",
        "",
    ]
    lines += [
        "| set | weight | samples | learned | manifest digest (SHA-256) |",
        "|---|---|---|---|---|",
    ]
    for name, one in config.data.sets.items():
        samples, digests = _identity(one, config.data.cache)
        learned = "; ".join(_learned(task) for task in one.tasks)
        lines.append(
            f"| {_cell(name)} | {one.weight:g} | {samples} | {_cell(learned)} | {digests} |"
        )
    return "\n".join(lines) + "\n"


def _identity(one: SetConfig, cache: CacheConfig) -> tuple[str, str]:
    """(number of samples, manifest digests) of a set, if its shards are on this machine."""
    try:
        dataset = Dataset.open(one.shards, cache)
    except UserError:
        return "not available", "not available (the shards were not on the exporting machine)"
    return f"{len(dataset):,}", ", ".join(f"`{digest}`" for digest in dataset.digests)


def _learned(task: TaskConfig) -> str:
    if task.objective == "contrastive":
        return f"{' ↔ '.join(task.between)} by {task.match or 'sample'}"
    prompt = f" ({task.prompt})" if task.prompt else ""
    return f"{' + '.join(task.input) or 'nothing'} → {task.target}{prompt}"


def _training(config: Config, state: RunState, told: CardFacts) -> str:
    data, optimizer = config.data, config.train.optimizer
    rows = {
        "steps": f"{state.step:,} of {config.train.steps:,}",
        "tokens a step": f"at most {data.sequences} x {data.seq_len}",
        "samples seen": f"{state.seen:,}, of which {state.bad:,} could not be used",
        "precision": f"{config.train.precision} compute, fp32 weights and moments",
        "optimizer": f"{_OPTIMIZERS[optimizer.name]}, peak learning rate {optimizer.lr:g}, "
        f"{optimizer.warmup_steps} warm-up steps, {optimizer.schedule} to {optimizer.final_lr:g} "
        "of the peak, "
        f"weight decay {optimizer.weight_decay:g}",
        "seed": str(config.seed),
        "fingerprint of the data plan": f"`{state.fingerprint}`",
    }
    if config.plugins:
        rows["plug-ins, not part of mmscale or of this folder"] = ", ".join(
            f"`{name}`" for name in config.plugins
        )
    if config.train.adversarial.on:
        rows["adversarial training"] = config.train.adversarial.told()
    if told.averaged:
        rows["weights"] = f"moving averages, decay {config.train.ema:g}"
    if told.merged:
        runs = (
            f"{Path(run).name} (step {one.step:,}, `{one.fingerprint[:16]}…`)"
            for run, one in told.merged
        )
        rows["mean of the weights of"] = ", ".join(runs)
    return (
        "## Training\n\n"
        + _table(rows)
        + "\nEvery key is in `config.json`. Equal fingerprints mean equal batches at every step, "
        "on any number of ranks.\n"
    )


def _scores(told: CardFacts, step: int) -> str:
    if told.averaged or told.merged:  # `mmscale eval` keeps the scores of a run's own weights alone
        kind = "moving averages" if told.averaged else "weights"
        what = f"the mean of several runs' {kind}" if told.merged else kind
        other = (
            f"Not evaluated: these are not the weights that `mmscale eval` scored, but {what}. "
            f"`mmscale eval {told.name}` scores them.\n"
        )
        return f"## Scores\n\n{other}\n## Robustness\n\n{other}"
    every = read_scores(told.run_dir, step)
    entries = {
        name: one for name, one in every.items() if one["scores"].get("task") != "robustness"
    }
    attacked = {name: one for name, one in every.items() if name not in entries}
    plain, robust = _plain_scores(entries), _robustness(attacked)
    cast = f"\nMeasured with weights of float32, before they were rounded to {told.dtype}.\n"
    if told.dtype != "float32":
        plain += cast if entries else ""
        robust += cast if attacked else ""
    return f"{plain}\n{robust}"


def _robustness(entries: dict[str, dict[str, Any]]) -> str:
    title = "## Robustness\n\n"
    if not entries:
        return (
            title
            + "Not measured at this step; `mmscale eval RUN --task robustness` before the export measures it.\n"
        )
    lines = [
        "Accuracy counts samples that are right as they are *and* under attack. PGD is projected "
        "gradient ascent with "
        "all of the model known; typing errors exchange, drop, repeat and swap characters. Another "
        "attack may do "
        "worse. Suspects are training samples whose label the model contradicts at every kept "
        "checkpoint; a backdoor "
        "that the model has learned is not among them.",
        "",
        "| what | samples | result |",
        "|---|---|---|",
    ]
    for name, entry in entries.items():
        scores = entry["scores"]
        result = [f"{key} {value:.4f}" for key, value in scores.items() if isinstance(value, float)]
        if scores.get("budget"):
            result.append(f"({scores['budget']})")
        if "suspects" in scores:
            result.append(f"({scores['suspects']} suspects, {scores['checkpoints']} checkpoints)")
        lines.append(
            f"| {_cell(name)} | {scores.get('samples', '?')} | {_cell(', '.join(result))} |"
        )
    commands = "\n".join(dict.fromkeys(str(entry["command"]) for entry in entries.values()))
    return title + "\n".join(lines) + f"\n\n```\n{commands}\n```\n"


def _plain_scores(entries: dict[str, dict[str, Any]]) -> str:
    if not entries:
        return (
            "## Scores\n\nNot evaluated at this step; `mmscale eval RUN` before `mmscale export "
            "RUN` "
            "puts scores here.\n"
        )
    lines = ["## Scores", "", "| score | samples | result | data (SHA-256) |", "|---|---|---|---|"]
    for name, entry in entries.items():
        scores: dict[str, Any] = entry["scores"]
        result = ", ".join(
            f"{key} {value:.4f}" for key, value in scores.items() if isinstance(value, float)
        )
        left_out = [f"{scores[key]} {key}" for key in ("skipped", "oversize") if scores.get(key)]
        samples = ", ".join([str(scores.get("samples", "?")), *left_out])
        digests = ", ".join(f"`{digest[:16]}…`" for digest in entry["digests"])
        lines.append(f"| {_cell(name)} ({scores.get('task')}) | {samples} | {result} | {digests} |")
    commands = "\n".join(dict.fromkeys(str(entry["command"]) for entry in entries.values()))
    return "\n".join(lines) + f"\n\nThe command that gives them:\n\n```\n{commands}\n```\n"


def _pictures(media: MediaConfig) -> str:
    if media.max_image_tokens:
        return f"aspect ratio kept, at most {media.max_image_tokens} tokens of {media.image_patch}-pixel squares"
    rows, columns = media.image_grid(media.image_height, media.image_width)
    return f"resized to {media.image_width} x {media.image_height} pixels, {rows * columns} tokens"


def _sizes(config: Config, told: CardFacts) -> str:
    model, media = config.model, config.media
    rows = {
        "parameters": f"{told.parameters:,}, {told.dtype}",
        "bytes": f"{sum(told.sizes.values()):,} in {len(told.sizes)} files, this card and the manifest",
        "blocks": f"{model.layers} of width {model.width}, {model.heads} query and {model.kv_heads} "
        f"key-value heads of {model.head_dim}, feed-forward {model.hidden}",
        "stems": f"image {model.image_stem}, audio {model.audio_stem}",
        "vocabulary": f"{model.vocab_size} byte-level BPE tokens",
        "pictures": _pictures(media),
        "sound": f"{media.sample_rate} Hz mono, {media.mel_bins} mel bands, "
        f"{media.sample_rate / (media.mel_hop * media.frames_per_token):.1f} tokens a second",
    }
    return "## Size\n\n" + _table(rows)


def _integrity(told: CardFacts) -> str:
    key = " --public-key public.pem" if told.signed else ""
    how = (
        "signed with OpenSSF model-signing (`model.sig`). Get the public key from where you trust "
        "it, not from this "
        "folder."
        if told.signed
        else "not signed."
    )
    return (
        "## Integrity\n\n`manifest.json` holds the SHA-256 of every file. This release is "
        f"{how}\n\n"
        f"```\nmmscale verify {told.name}{key}\n```\n"
    )


def _limits(config: Config, state: RunState) -> str:
    media = config.media
    lines = [
        "## Limits",
        "",
        f"- One question with its answer fits in {config.data.seq_len} tokens.",
        f"- Clips are at most {media.max_audio_s:g} s long, "
        f"pictures at most {media.max_image_pixels:,} pixels.",
        "- It knows the prompts it was trained with; other prompts give answers nobody has "
        "measured.",
        "- Scores hold for data like the data they were measured on. Probabilities are not "
        "calibrated.",
        "- It repeats what its training data holds, errors and prejudice included. Judge its "
        "answers before "
        "they decide anything about a person.",
    ]
    if state.step < config.train.steps:
        lines.append(
            f"- Training was not finished: {state.step:,} of {config.train.steps:,} steps."
        )
    return "\n".join(lines) + "\n"


def _table(rows: dict[str, str]) -> str:
    return (
        "\n".join(
            [
                "| | |",
                "|---|---|",
                *(f"| {name} | {_cell(value)} |" for name, value in rows.items()),
            ]
        )
        + "\n"
    )


def _cell(text: str) -> str:
    """Text that cannot break out of its table cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _kind(field: str) -> str:
    return field if field in ("image", "audio") else "text"
