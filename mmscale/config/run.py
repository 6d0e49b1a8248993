"""The root of a run's config."""

from __future__ import annotations

from dataclasses import dataclass

from mmscale.config.data import DataConfig, check_schedule
from mmscale.config.evaluation import EvalConfig, RobustnessConfig, check_eval
from mmscale.config.keys import key
from mmscale.config.media import MediaConfig, check_media
from mmscale.config.model import ModelConfig, check_model
from mmscale.config.parallel import ParallelConfig, check_parallel
from mmscale.config.ray import RayConfig, check_ray
from mmscale.config.tasks import check_set
from mmscale.config.train import TrainConfig
from mmscale.config.tune import TuneConfig, check_tune
from mmscale.errors import UserError
from mmscale.registry import TRACKERS


@dataclass(kw_only=True)
class RunConfig:
    dir: str = key("runs/default", "Folder of this run: config, metrics, checkpoints, logs.")
    copy_to: str = key(
        "",
        "Folder in an object store (s3://… or gs://…). Every checkpoint is copied there. A "
        "start fetches what run.dir lacks.",
    )
    progress: bool = key(True, "Show the progress bar on rank 0.")
    tensorboard: bool = key(True, "Write TensorBoard event files to run.dir/tensorboard.")
    trackers: list[str] = key(
        [],
        "Trackers that get the numbers of metrics.jsonl, in addition to run.tensorboard.",
        choices=TRACKERS.names,
    )
    watts: float = key(
        0.0,
        "Power of one rank in watts, with its share of machine and cooling, for the model "
        "card's CO₂ estimate. 0: 700 for a GPU, 60 for a CPU.",
        low=0.0,
    )
    co2_g_per_kwh: float = key(
        445.0,
        "Carbon intensity of the electricity, grams of CO₂ per kWh. 445 is the world's mean in "
        "2024 (IEA).",
        low=0.0,
    )


@dataclass(kw_only=True)
class Config:
    seed: int = key(0, "Root of every random choice: order, augmentation, weights, dropout.")
    description: str = key("", "One line about this run, for the model card.")
    licence: str = key("", "Licence of the training data, for the model card.")
    plugins: list[str] = key(
        [],
        "Modules to import that add objectives, stems, text normalisers or trackers "
        "(docs/plugins.md), such as my_package.my_module.",
    )
    run: RunConfig = key(RunConfig, "")
    media: MediaConfig = key(MediaConfig, "")
    data: DataConfig = key(DataConfig, "")
    model: ModelConfig = key(ModelConfig, "")
    train: TrainConfig = key(TrainConfig, "")
    parallel: ParallelConfig = key(ParallelConfig, "")
    eval: dict[str, EvalConfig] = key({}, "Scores by name.")
    robustness: RobustnessConfig = key(RobustnessConfig, "")
    ray: RayConfig = key(RayConfig, "")
    tune: TuneConfig = key(TuneConfig, "")

    def check(self) -> None:
        """Rules between keys. Raises `UserError` naming the key and the remedy."""
        check_media(self.media)
        check_model(self.model)
        check_parallel(self.parallel)
        check_ray(self.ray)
        check_tune(self.tune)
        patch = self.media.image_patch
        if self.model.image_stem == "cnn" and patch & (patch - 1):
            raise UserError(
                f"media.image_patch: {patch} is not a power of two, which the cnn stem halves down "
                f"from; try {1 << (patch.bit_length() - 1)}"
            )
        if not self.data.sets:
            raise UserError("data.sets: no data set is named; add one with its shards and tasks")
        if self.parallel.float8 and self.train.precision != "bf16":
            raise UserError(
                f"parallel.float8={self.parallel.float8}: needs train.precision=bf16, which is "
                f"{self.train.precision}"
            )
        for name, data_set in self.data.sets.items():
            check_set(f"data.sets.{name}", data_set)
        if not any(data_set.weight > 0 for data_set in self.data.sets.values()):
            raise UserError("data.sets: every weight is 0; give at least one set a weight above 0")
        check_schedule(self.data)
        if self.data.lanes and self.data.sequences % self.data.lanes:
            raise UserError(
                f"data.lanes: {self.data.lanes} does not divide "
                f"data.sequences={self.data.sequences}; use a divisor, or 0"
            )
        if self.data.sequences % self.data.contrast_sequences:
            raise UserError(
                f"data.contrast_sequences: {self.data.contrast_sequences} does not divide "
                f"data.sequences={self.data.sequences}"
            )
        optimizer = self.train.optimizer
        for name in ("beta1", "beta2", "momentum"):
            if not getattr(optimizer, name) < 1:
                raise UserError(
                    f"train.optimizer.{name}: {getattr(optimizer, name):g} never forgets; use 0.9 "
                    "or so"
                )
        if optimizer.decay_share > 1:
            raise UserError(
                f"train.optimizer.decay_share: {optimizer.decay_share:g} is above 1, the whole "
                "run; use 0.2"
            )
        for name, share in (
            ("train.adversarial.share", self.train.adversarial.share),
            ("robustness.characters", self.robustness.characters),
        ):
            if share > 1:
                raise UserError(
                    f"{name}: {share:g} is above 1, which is all of them; use a share such as 0.5"
                )
        if not self.train.ema < 1:
            raise UserError(f"train.ema: {self.train.ema:g} never changes; use 0.999 or so")
        for name, score in self.eval.items():
            check_eval(f"eval.{name}", score)
