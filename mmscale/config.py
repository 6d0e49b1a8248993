"""The whole run as typed, documented, validated objects. Reading files into them is `config_file`.

Every key carries its own documentation, so ``mmscale train --keys`` can print it and no page repeats it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmscale.errors import UserError

TEXT_FIELDS = ("text", "cls")
MEDIA_FIELDS = ("image", "audio")


def is_media(field: str) -> bool:
    """Whether a field reference is a picture or a clip, such as ``image`` or ``image.left``."""
    return field.partition(".")[0] in MEDIA_FIELDS


def key(default: Any, doc: str, *, choices: tuple[str, ...] = (), low: float | None = None) -> Any:
    """A documented config key. ``choices`` and ``low`` (inclusive) are checked when a file is read."""
    metadata = {"doc": doc, "choices": choices, "low": low}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class MediaConfig:
    """How pictures and sound become tokens. Planning, decoding and the stems read the same numbers."""

    image_height: int = key(64, "Pixels every picture is resized to; a multiple of image_patch.", low=1)
    image_width: int = key(64, "Pixels every picture is resized to; a multiple of image_patch.", low=1)
    max_image_tokens: int = key(
        0,
        "Above 0: a picture keeps its aspect ratio and gets as many tokens as it has detail for, this many at most, "
        "instead of being stretched to image_height x image_width.",
        low=0,
    )
    image_patch: int = key(16, "Pixels along one side of the square that becomes one token.", low=1)
    max_image_pixels: int = key(64_000_000, "Larger pictures are refused from their header.", low=1)
    sample_rate: int = key(16_000, "Samples a second after resampling.", low=1000)
    mel_bins: int = key(80, "Mel bands of the log-mel spectrogram.", low=1)
    mel_window: int = key(400, "Samples of one analysis window (25 ms at 16 kHz).", low=1)
    mel_hop: int = key(160, "Samples between two frames (10 ms at 16 kHz).", low=1)
    frames_per_token: int = key(8, "Spectrogram frames that become one token; a power of two.", low=1)
    max_audio_s: float = key(30.0, "Longer clips are refused from their header; seconds.", low=0.0)
    max_file_bytes: int = key(64_000_000, "Larger members are refused before they are read.", low=1)

    def image_grid(self, height: Any, width: Any) -> tuple[Any, Any]:
        """Rows and columns of tokens of a picture of ``height`` x ``width`` pixels, numbers or int64 arrays.

        With `max_image_tokens`, the largest whole grid of at most so many patches that keeps the aspect ratio
        and does not enlarge the picture (as NaViT's; Dehghani et al., 2023), never less than one patch.
        Turning the picture by 90 degrees swaps the two, so a plan need not know about EXIF turns.
        """
        height, width = np.asarray(height, np.float64), np.asarray(width, np.float64)
        patch, most = self.image_patch, self.max_image_tokens
        if not most:
            rows = np.full(height.shape, self.image_height // patch)
            columns = np.full(height.shape, self.image_width // patch)
        else:
            # sqrt and division are correctly rounded everywhere, so every machine finds the same grid.
            shrunk = np.minimum(height / patch, np.sqrt(most * height / width))
            rows = np.clip(np.floor(shrunk).astype(np.int64), 1, most)
            shrunk = np.minimum(width / patch, np.sqrt(most * width / height))
            columns = np.clip(np.floor(shrunk).astype(np.int64), 1, most)
        return (rows, columns) if rows.ndim else (int(rows), int(columns))

    def audio_tokens(self, frames: Any, rate: Any) -> Any:
        """Tokens of a clip of ``frames`` samples at ``rate`` Hz, numbers or int64 arrays."""
        return -(-self.audio_frames(self.audio_samples(frames, rate)) // self.frames_per_token)

    def audio_samples(self, frames: Any, rate: Any) -> Any:
        """Samples at `sample_rate` of a clip of ``frames`` samples at ``rate`` Hz (rounded up)."""
        return -(-frames * self.sample_rate // rate)

    def audio_frames(self, samples: Any) -> Any:
        """Spectrogram frames of ``samples`` samples at `sample_rate`, at least one."""
        frames = -(-samples // self.mel_hop)
        return frames + (frames == 0)


@dataclass
class AugmentConfig:
    """Random changes to training samples, drawn from (seed, epoch, sample). All off by default."""

    image_crop: float = key(
        0.0, "Random resized crop: least share of the picture's area that is kept; 0: off.", low=0.0
    )
    image_shift: float = key(0.0, "Largest shift as a share of the picture's side.", low=0.0)
    image_rotate: float = key(0.0, "Largest turn, degrees.", low=0.0)
    image_scale: float = key(0.0, "Largest relative change of size.", low=0.0)
    image_flip: bool = key(False, "Mirror half of the pictures.")
    image_colour: float = key(0.0, "Largest relative change of brightness, contrast and saturation.", low=0.0)
    audio_speed: float = key(0.0, "Largest relative change of speed (and pitch).", low=0.0)
    audio_gain_db: float = key(0.0, "Largest change of loudness, decibels.", low=0.0)
    audio_noise: float = key(0.0, "Largest white-noise level relative to the clip's own level.", low=0.0)
    audio_shift_s: float = key(0.0, "Largest shift in time, seconds; what leaves is silence.", low=0.0)
    mel_warp: float = key(0.0, "Largest relative stretch of the mel axis (vocal-tract length).", low=0.0)
    mel_masks: int = key(0, "SpecAugment: number of frequency masks and of time masks.", low=0)
    mel_mask_bins: int = key(12, "SpecAugment: widest frequency mask, bands.", low=0)
    mel_mask_frames: int = key(12, "SpecAugment: widest time mask, frames.", low=0)
    text_drop: float = key(0.0, "Share of input text tokens replaced by <|mask|>.", low=0.0)


@dataclass
class TaskConfig:
    """What a sample is asked. A sample yields the segments of every task whose fields it has."""

    objective: str = key("next_token", "What is learned.", choices=("next_token", "contrastive"))
    weight: float = key(
        1.0, "Factor of this task's loss; every objective is a mean over its own tokens.", low=0.0
    )
    input: list[str] = key([], "next_token: fields before the answer, such as [image] or [text].")
    prompt: str = key("", "next_token: literal text after the input, to tell tasks apart.")
    target: str = key("", "next_token: the field to answer with, such as text or json.label.")
    input_weight: float = key(0.0, "next_token: factor of the loss on the input's own text tokens.", low=0.0)
    between: list[str] = key([], "contrastive: two or more fields that belong together.")
    match: str = key(
        "", "contrastive: field whose equal values also belong together; empty: the sample's key."
    )

    def fields(self) -> list[str]:
        """Every field the task reads."""
        named = [*self.input, self.target] if self.objective == "next_token" else [*self.between, self.match]
        return [name for name in named if name]


@dataclass
class SetConfig:
    """One data set of the mixture."""

    shards: list[str] = key([], "Folders, files or brace patterns of tar shards.")
    weight: float = key(1.0, "Share of the sequences, relative to the other sets.", low=0.0)
    max_epochs: int = key(
        0, "Most times a sample is repeated, then the other sets go on alone; 0: no cap.", low=0
    )
    tasks: list[TaskConfig] = key([], "What its samples are asked.")
    augment: AugmentConfig = key(AugmentConfig, "Random changes to its samples.")


@dataclass
class WeightChange:
    """New weights from a step on."""

    step: int = key(0, "First step with these weights.", low=0)
    weights: dict[str, float] = key({}, "Weights by data set; sets not named keep theirs.")


@dataclass
class CacheConfig:
    """Local copies of remote shards, shared by all processes of a machine."""

    dir: str = key("", "Folder of the cache; empty: $MMSCALE_CACHE, else ~/.cache/mmscale.")
    max_gb: float = key(100.0, "Size limit, 10^9 bytes; what was used longest ago goes first.", low=0.001)
    retries: int = key(8, "Attempts after a passing failure of the network, with growing pauses.", low=0)

    def folder(self) -> Path:
        """The cache's folder; it need not exist."""
        return Path(self.dir or os.environ.get("MMSCALE_CACHE") or "~/.cache/mmscale").expanduser()


@dataclass
class TokenizerConfig:
    file: str = key("", "A tokenizer.json to use; empty: train one on the data's own text.")
    vocab_size: int = key(1024, "Size of a newly trained vocabulary, special tokens included.", low=300)


@dataclass
class DataConfig:
    prepare: str = key("", "Embedded data set to build first where it is missing.", choices=("", "digits"))
    sets: dict[str, SetConfig] = key({}, "Data sets by name.")
    schedule: list[WeightChange] = key([], "Changes of the sets' weights at given steps.")
    accept_changes: bool = key(
        False, "Resume on shards that were replaced, added or removed, from that step on."
    )
    cache: CacheConfig = key(CacheConfig, "Local copies of remote shards.")
    tokenizer: TokenizerConfig = key(TokenizerConfig, "Byte-level BPE.")
    seq_len: int = key(1024, "Tokens of one packed sequence.", low=16)
    sequences: int = key(8, "Sequences of one step, over all ranks together.", low=1)
    block: int = key(256, "Neighbouring samples that stay together, so that reads are local.", low=1)
    group_blocks: int = key(
        0,
        "Blocks whose samples are packed into sequences together; 0: 8, or as many as fill 128 sequences.",
        low=0,
    )
    window_groups: int = key(4, "Groups whose sequences are shuffled together.", low=1)
    workers: int = key(1, "Loader processes of each rank; 0: in the training process.", low=0)
    prefetch: int = key(4, "Micro-batches each worker prepares ahead.", low=1)
    max_bad_fraction: float = key(0.01, "Share of undecodable samples above which the run ends.", low=0.0)


@dataclass
class ModelConfig:
    """The fusion transformer. Sizes are files under configs/model/."""

    width: int = key(256, "Width d of the residual stream.", low=8)
    layers: int = key(4, "Fusion blocks.", low=1)
    heads: int = key(4, "Query heads.", low=1)
    kv_heads: int = key(4, "Key and value heads; fewer than heads: grouped-query attention.", low=1)
    head_dim: int = key(64, "Width of one head; even.", low=2)
    hidden: int = key(768, "Width of the SwiGLU feed-forward.", low=8)
    rope_theta: float = key(10_000.0, "Base of the rotary frequencies.", low=1.0)
    norm_eps: float = key(1e-6, "Epsilon of every RMSNorm.", low=0.0)
    image_stem: str = key("patch", "How pictures become vectors.", choices=("patch", "cnn"))
    audio_stem: str = key("conv", "How spectrograms become vectors.", choices=("conv", "rnn"))
    stem_width: int = key(64, "Channels of the first layer of the cnn, conv and rnn stems.", low=4)
    embed_dim: int = key(128, "Width of the contrastive embeddings.", low=4)
    vocab_size: int = key(0, "Rows of the embedding; 0: the tokenizer's size, rounded up to 64.", low=0)
    dropout: float = key(0.0, "Dropped share of each block's two outputs.", low=0.0)
    attention: str = key(
        "auto",
        "Path for the same result: dense (reference), grouped (CPU), flex (GPU); auto picks by device.",
        choices=("auto", "dense", "grouped", "flex"),
    )


@dataclass
class OptimizerConfig:
    lr: float = key(1e-3, "Peak learning rate.", low=0.0)
    beta1: float = key(0.9, "AdamW, first moment.", low=0.0)
    beta2: float = key(0.95, "AdamW, second moment.", low=0.0)
    eps: float = key(1e-8, "AdamW, epsilon.", low=0.0)
    weight_decay: float = key(0.1, "Decoupled decay of matrices; vectors are not decayed.", low=0.0)
    warmup_steps: int = key(100, "Steps of linear warm-up.", low=0)
    final_lr: float = key(0.1, "Learning rate at the last step as a share of the peak (cosine).", low=0.0)
    clip_norm: float = key(1.0, "Largest global gradient norm; 0: not clipped.", low=0.0)


@dataclass
class TrainConfig:
    steps: int = key(1000, "Optimiser steps.", low=1)
    micro_batch: int = key(1, "Sequences of one forward pass on one rank; the rest is accumulated.", low=1)
    precision: str = key(
        "bf16", "Compute type; weights and moments are fp32 in both.", choices=("fp32", "bf16")
    )
    optimizer: OptimizerConfig = key(OptimizerConfig, "AdamW, warm-up and cosine.")
    checkpoint_every: int = key(500, "Steps between checkpoints; the last step is always kept.", low=1)
    keep_last: int = key(2, "Checkpoints kept; older ones are removed.", low=1)
    resume: str = key(
        "auto", "auto: newest checkpoint of run.dir; never: refuse a used run.dir.", choices=("auto", "never")
    )
    log_every: int = key(1, "Steps between lines of metrics.jsonl.", low=1)


@dataclass
class ParallelConfig:
    strategy: str = key(
        "auto",
        "single: one process; fsdp: FSDP2 over all ranks; auto: fsdp when there are several ranks.",
        choices=("auto", "single", "fsdp"),
    )
    threads: int = key(
        0, "CPU threads of each rank; 0: the cores divided by the ranks of this machine.", low=0
    )
    timeout_s: float = key(600.0, "A collective that waits longer ends the run; seconds.", low=1.0)


@dataclass
class EvalConfig:
    """One score to compute on held-out shards."""

    task: str = key("classify", "Kind of score.", choices=("classify", "transcribe", "retrieve"))
    shards: list[str] = key([], "Held-out shards; --data replaces them.")
    input: list[str] = key([], "classify, transcribe: fields the model is given.")
    prompt: str = key("", "classify, transcribe: the prompt of the training task.")
    target: str = key("", "classify, transcribe: the true answer.")
    labels: list[str] = key([], "classify: the answers to choose from; empty: every target in the shards.")
    query: str = key("", "retrieve: the field that asks.")
    candidates: str = key("", "retrieve: the field that is searched.")
    match: str = key("", "retrieve: field whose equal values count as found; empty: the sample's key.")
    max_new_tokens: int = key(64, "transcribe: longest answer, tokens.", low=1)

    def fields(self) -> list[str]:
        """Every field the score reads."""
        return [name for name in (*self.input, self.target, self.query, self.candidates, self.match) if name]


@dataclass
class RunConfig:
    dir: str = key("runs/default", "Where config, metrics, checkpoints and logs of this run lie.")
    progress: bool = key(True, "Show the progress bar on rank 0.")
    tensorboard: bool = key(True, "Write TensorBoard event files to run.dir/tensorboard.")


@dataclass
class Config:
    seed: int = key(0, "Root of every random choice: order, augmentation, weights, dropout.")
    description: str = key("", "One line that says what this run is, for the model card.")
    licence: str = key("", "Licence of the training data, for the model card.")
    run: RunConfig = key(RunConfig, "")
    media: MediaConfig = key(MediaConfig, "")
    data: DataConfig = key(DataConfig, "")
    model: ModelConfig = key(ModelConfig, "")
    train: TrainConfig = key(TrainConfig, "")
    parallel: ParallelConfig = key(ParallelConfig, "")
    eval: dict[str, EvalConfig] = key({}, "Scores by name.")

    def check(self) -> None:
        """Rules between keys. Raises `UserError` naming the key and the remedy."""
        _check_media(self.media)
        _check_model(self.model)
        if not self.data.sets:
            raise UserError("data.sets: no data set is named; add one with its shards and tasks")
        for name, data_set in self.data.sets.items():
            _check_set(f"data.sets.{name}", data_set)
        if not any(data_set.weight > 0 for data_set in self.data.sets.values()):
            raise UserError("data.sets: every weight is 0; give at least one set a weight above 0")
        _check_schedule(self.data)
        for name, score in self.eval.items():
            _check_eval(f"eval.{name}", score)


def check_field(where: str, name: str) -> None:
    """A field reference is image, audio, text, cls, json.<path>, or image.<name> and so on."""
    kind, dot, rest = name.partition(".")
    if (kind in (*TEXT_FIELDS, *MEDIA_FIELDS) and (rest or not dot)) or (kind == "json" and rest):
        return
    raise UserError(
        f"{where}: unknown field {name!r}; use image, audio, text, cls, json.<path>, or image.<name> for <name>.png"
    )


def _check_media(media: MediaConfig) -> None:
    for axis in ("image_height", "image_width"):
        if getattr(media, axis) % media.image_patch:
            raise UserError(
                f"media.{axis}: {getattr(media, axis)} is not a multiple of media.image_patch={media.image_patch}"
            )
    for name in ("frames_per_token", "image_patch"):
        value = getattr(media, name)
        if value & (value - 1):
            raise UserError(
                f"media.{name}: {value} is not a power of two; try {1 << (value.bit_length() - 1)}"
            )
    if media.mel_window < media.mel_hop:
        raise UserError("media.mel_window: shorter than media.mel_hop; frames would skip samples")


def _check_model(model: ModelConfig) -> None:
    if model.heads % model.kv_heads:
        raise UserError(f"model.kv_heads: {model.kv_heads} does not divide model.heads={model.heads}")
    if model.head_dim % 2:
        raise UserError(f"model.head_dim: {model.head_dim} is odd; rotary positions need an even width")
    if model.dropout >= 1.0:
        raise UserError(f"model.dropout: {model.dropout} would drop everything; use a share below 1")


def _check_set(where: str, data_set: SetConfig) -> None:
    if not data_set.shards:
        raise UserError(f"{where}.shards: empty; name a folder, a file or a brace pattern of tar shards")
    if data_set.augment.image_crop > 1:
        raise UserError(
            f"{where}.augment.image_crop: {data_set.augment.image_crop:g} is above 1, the whole picture; use 0.5 or so"
        )
    if not data_set.tasks:
        raise UserError(f"{where}.tasks: empty; say what its samples are asked")
    for number, task in enumerate(data_set.tasks):
        place = f"{where}.tasks[{number}]"
        for name in task.fields():
            check_field(place, name)
        if task.objective == "next_token":
            if not task.target or is_media(task.target):
                raise UserError(f"{place}.target: a next_token task answers with a text field, such as text")
        elif len(task.between) < 2:
            raise UserError(f"{place}.between: a contrastive task needs at least two fields")


def _check_schedule(data: DataConfig) -> None:
    last = 0
    for number, change in enumerate(data.schedule):
        place = f"data.schedule[{number}]"
        if change.step <= last and number:
            raise UserError(f"{place}.step: {change.step} does not come after step {last}; put them in order")
        last = change.step
        for name, weight in change.weights.items():
            if name not in data.sets:
                raise UserError(f"{place}.weights.{name}: no such set; data.sets has {', '.join(data.sets)}")
            if not weight >= 0:
                raise UserError(f"{place}.weights.{name}: {weight} is below 0; use 0 to leave the set out")


def _check_eval(where: str, score: EvalConfig) -> None:
    for name in score.fields():
        check_field(where, name)
    needed: dict[str, str | list[str]]
    if score.task == "retrieve":
        needed = {"query": score.query, "candidates": score.candidates}
    else:
        needed = {"input": score.input, "target": score.target}
    for name, value in needed.items():
        if not value:
            raise UserError(f"{where}.{name}: missing; {score.task} needs it")
