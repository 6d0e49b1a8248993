"""The whole run as typed, documented, validated objects. Reading files into them is
`mmscale.config_file`.

Every key carries its own documentation, so ``mmscale train --keys`` can print it and no page
repeats it.
"""

from mmscale.config.data import CacheConfig, DataConfig, TokenizerConfig, WeightChange
from mmscale.config.evaluation import SCORES, EvalConfig, RobustnessConfig
from mmscale.config.keys import (
    BY_KEY,
    MEDIA_FIELDS,
    TEXT_FIELDS,
    check_field,
    is_media,
    media_kind,
)
from mmscale.config.media import MediaConfig
from mmscale.config.model import ModelConfig
from mmscale.config.parallel import ParallelConfig
from mmscale.config.ray import RayConfig
from mmscale.config.run import Config, RunConfig
from mmscale.config.tasks import AugmentConfig, SetConfig, TaskConfig
from mmscale.config.train import AdversarialConfig, OptimizerConfig, TrainConfig
from mmscale.config.tune import ParameterConfig, TuneConfig

__all__ = [
    "BY_KEY",
    "MEDIA_FIELDS",
    "SCORES",
    "TEXT_FIELDS",
    "AdversarialConfig",
    "AugmentConfig",
    "CacheConfig",
    "Config",
    "DataConfig",
    "EvalConfig",
    "MediaConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "ParameterConfig",
    "RayConfig",
    "RobustnessConfig",
    "RunConfig",
    "SetConfig",
    "TaskConfig",
    "TokenizerConfig",
    "TrainConfig",
    "TuneConfig",
    "WeightChange",
    "check_field",
    "is_media",
    "media_kind",
]
