"""What the samples of a data set are asked, and how they are varied."""

from __future__ import annotations

from dataclasses import dataclass

from mmscale.config.keys import check_field, key
from mmscale.errors import UserError
from mmscale.registry import OBJECTIVES


@dataclass(kw_only=True)
class AugmentConfig:
    """Random changes to training samples, drawn from (seed, epoch, sample). All off by default."""

    image_crop: float = key(
        0.0,
        "Random resized crop: smallest share of the picture's area that is kept; 0: off.",
        low=0.0,
    )
    image_shift: float = key(0.0, "Largest shift as a share of the picture's side.", low=0.0)
    image_rotate: float = key(0.0, "Largest rotation, degrees.", low=0.0)
    image_scale: float = key(0.0, "Largest relative change of size.", low=0.0)
    image_flip: bool = key(False, "Mirror half of the pictures.")
    image_colour: float = key(
        0.0, "Largest relative change of brightness, contrast and saturation.", low=0.0
    )
    audio_speed: float = key(0.0, "Largest relative change of speed (and pitch).", low=0.0)
    audio_gain_db: float = key(0.0, "Largest change of loudness, decibels.", low=0.0)
    audio_noise: float = key(
        0.0, "Largest white-noise level relative to the clip's own level.", low=0.0
    )
    audio_shift_s: float = key(
        0.0, "Largest shift in time, seconds. The gap is filled with silence.", low=0.0
    )
    mel_warp: float = key(
        0.0, "Largest relative stretch of the mel axis (vocal-tract length).", low=0.0
    )
    mel_masks: int = key(0, "SpecAugment: number of frequency masks and of time masks.", low=0)
    mel_mask_bins: int = key(12, "SpecAugment: widest frequency mask, bands.", low=0)
    mel_mask_frames: int = key(12, "SpecAugment: widest time mask, frames.", low=0)
    text_drop: float = key(0.0, "Share of input text tokens replaced by <|mask|>.", low=0.0)
    mixup: float = key(
        0.0,
        "classify: blend pictures of one sequence, and their labels. The share is from Beta(a, a). "
        "0: off.",
        low=0.0,
    )
    cutmix: float = key(
        0.0,
        "classify: paste a part of another picture. The area is from Beta(a, a). 0: off.",
        low=0.0,
    )


@dataclass(kw_only=True)
class TaskConfig:
    """What a sample is asked. A sample yields the segments of every task whose fields it has."""

    objective: str = key("next_token", "What is learned.", choices=OBJECTIVES.names)
    weight: float = key(
        1.0, "Factor of this task's loss. Every objective is a mean over its own tokens.", low=0.0
    )
    input: list[str] = key(
        [], "Fields before the answer, such as [image] or [text]. ctc: one clip, such as [audio]."
    )
    prompt: str = key(
        "", "next_token, classify: literal text after the input. It distinguishes tasks."
    )
    target: str = key(
        "", "All but contrastive: the field that is the answer, such as text or json.label."
    )
    head: str = key(
        "",
        "classify: name of the linear head. Tasks with the same name share it. Empty: the target's "
        "name.",
    )
    input_weight: float = key(
        0.0, "next_token: factor of the loss on the input's own text tokens.", low=0.0
    )
    between: list[str] = key([], "contrastive: two or more fields that belong together.")
    match: str = key(
        "",
        "contrastive: samples with equal values of this field also belong together. key: samples "
        "with equal keys, also of different shards. Empty: each sample belongs to itself alone.",
    )

    def fields(self) -> list[str]:
        """Every field the task reads."""
        fields: list[str] = OBJECTIVES[self.objective].fields(self)
        return fields

    def head_name(self) -> str:
        """classify: name of the linear head, which is part of its parameters' names."""
        return (self.head or self.target).replace(".", "_")


@dataclass
class SetConfig:
    """One data set of the mixture."""

    shards: list[str] = key([], "Folders, files or brace patterns of tar shards.")
    weight: float = key(1.0, "Share of the sequences, relative to the other sets.", low=0.0)
    max_epochs: int = key(
        0,
        "How often each sample is used at most. Then the other sets continue alone. 0: no limit.",
        low=0,
    )
    tasks: list[TaskConfig] = key([], "What is learned from its samples.")
    long: str = key(
        "refuse",
        "What becomes of a sample that is longer than data.seq_len. refuse: it is left out. split: "
        "its text is cut into segments, each token learned once; for sets whose one task is "
        "next_token on a text without input and prompt.",
        choices=("refuse", "split"),
    )
    augment: AugmentConfig = key(AugmentConfig, "Random changes to its samples.")


def check_set(where: str, data_set: SetConfig) -> None:
    if not data_set.shards:
        raise UserError(
            f"{where}.shards: empty; name a folder, a file or a brace pattern of tar shards"
        )
    if data_set.augment.image_crop > 1:
        raise UserError(
            f"{where}.augment.image_crop: {data_set.augment.image_crop:g} is above 1, the whole "
            "picture; use 0.5 or so"
        )
    if not data_set.tasks:
        raise UserError(f"{where}.tasks: empty; say what its samples are asked")
    for number, task in enumerate(data_set.tasks):
        place = f"{where}.tasks[{number}]"
        for name in task.fields():
            check_field(place, name)
        OBJECTIVES[task.objective].check(place, task)
    _check_mixing(where, data_set)
    _check_long(where, data_set)


def _check_long(where: str, data_set: SetConfig) -> None:
    """Only a text alone can be cut: what else a segment held, all its parts would need."""
    if data_set.long == "split" and not (
        len(data_set.tasks) == 1
        and OBJECTIVES[data_set.tasks[0].objective].can_split(data_set.tasks[0])
    ):
        raise UserError(
            f"{where}.long: split is for a set whose one task is {{objective: next_token, target: "
            "text}, without input and prompt; use refuse"
        )


def _check_mixing(where: str, data_set: SetConfig) -> None:
    """A blend of two pictures is something that only some objectives can learn from."""
    augment = data_set.augment
    for name in ("mixup", "cutmix"):
        if getattr(augment, name) > 1:
            raise UserError(
                f"{where}.augment.{name}: {getattr(augment, name):g} is above 1; use 0.2 to 1"
            )
    if not (augment.mixup or augment.cutmix):
        return
    for number, task in enumerate(data_set.tasks):
        pictures = any(field.startswith("image") for field in task.fields())
        if pictures and not OBJECTIVES[task.objective].takes_mixed_images:
            raise UserError(
                f"{where}.augment: mixup and cutmix change what pictures show, which "
                f"tasks[{number}] ({task.objective}) cannot learn from; make it a set of its own, "
                "or turn them off"
            )
