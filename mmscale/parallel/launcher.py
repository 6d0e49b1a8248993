"""What the launcher says about the strategy: taken where the config is open, an error where the two
contradict.

`accelerate launch --config_file F` puts its file's settings into ``ACCELERATE_*``, ``FSDP_*`` and
``PARALLELISM_CONFIG_*``. A setting at accelerate's own default says nothing, because accelerate
writes those too. DeepSpeed's launcher says ZeRO-2 by having started us: by pdsh no variables of
ours reach the other machines. torchrun says nothing about the strategy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from mmscale.config import Config
from mmscale.config.parallel import check_parallel
from mmscale.errors import UserError
from mmscale.registry import STRATEGIES

_BY_DEEPSPEED = ("LOCAL_SIZE", "CROSS_SIZE")  # what its launcher alone sets


def apply_launcher_settings(config: Config, environment: Mapping[str, str] | None = None) -> None:
    """Complete ``config.parallel`` from the launcher's environment.

    Raises:
        UserError: they contradict each other, or the launcher asks for what is not offered.
    """
    environment = dict(os.environ if environment is None else environment)
    parallel = config.parallel
    if "ACCELERATE_MIXED_PRECISION" in environment:
        _take_accelerate(config, environment)
    if parallel.strategy == "auto" and parallel.deepspeed_config:
        parallel.strategy = _stage_of(parallel.deepspeed_config)
    if parallel.strategy == "auto" and all(name in environment for name in _BY_DEEPSPEED):
        parallel.strategy = "zero2"
    check_parallel(parallel)


def _take_accelerate(config: Config, environment: dict[str, str]) -> None:
    if _true(environment, "ACCELERATE_USE_MEGATRON_LM"):
        raise UserError(
            "accelerate's use_megatron_lm is not offered; use fsdp with parallel.tensor instead"
        )
    _check_precision(config, environment)
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend not in ("no", "inductor"):
        raise UserError(
            f"accelerate's dynamo_backend={backend} is not offered; use inductor, or leave it out"
        )
    config.parallel.compile = config.parallel.compile or backend == "inductor"
    if _true(environment, "ACCELERATE_USE_DEEPSPEED"):
        _take_deepspeed(config, environment)
    elif _true(environment, "ACCELERATE_USE_FSDP"):
        _take_fsdp(config, environment)
    elif _true(environment, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        _settle(config, "strategy", "fsdp", "parallelism_config", default="auto")
    elif int(environment.get("WORLD_SIZE", "1")) > 1:
        _settle(config, "strategy", "ddp", "neither use_fsdp nor use_deepspeed", default="auto")
    if _true(environment, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        for key, name in (
            ("tensor", "TP_SIZE"),
            ("context", "CP_SIZE"),
            ("replicas", "DP_REPLICATE_SIZE"),
        ):
            size = int(environment.get(f"PARALLELISM_CONFIG_{name}", "1"))
            if size > 1:
                _settle(config, key, size, f"parallelism_config_{name.lower()}", default=1)
        if int(environment.get("PARALLELISM_CONFIG_SP_SIZE", "1")) > 1:
            raise UserError(
                "accelerate's parallelism_config_sp_size is not offered; use "
                "parallelism_config_cp_size"
            )


def _take_deepspeed(config: Config, environment: dict[str, str]) -> None:
    path = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    if path and path.lower() != "none":
        _settle(config, "deepspeed_config", path, "deepspeed_config_file", default="")
        _settle(
            config, "strategy", _stage_of(path), f"deepspeed_config_file {path}", default="auto"
        )
        return
    stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if f"zero{stage}" not in STRATEGIES.names():
        raise UserError(f"accelerate's zero_stage={stage} is not offered; use 1, 2 or 3")
    _settle(config, "strategy", f"zero{stage}", f"zero_stage: {stage}", default="auto")
    device = environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none")
    expected = device if stage == "3" else "none"
    weights = environment.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", expected)
    if weights != expected:
        raise UserError(
            f"accelerate's offload_optimizer_device={device} and offload_param_device={weights}: "
            "stage 3 offloads both to one place, 1 and 2 the optimizer alone; make them agree"
        )
    if device != "none":
        _settle(config, "offload", device, "offload_optimizer_device", default="none")
    clip = environment.get("ACCELERATE_GRADIENT_CLIPPING", "1.0")
    norm = config.train.optimizer.clip_norm
    if clip not in ("none", "auto", "1.0", f"{norm}", f"{norm:g}"):
        raise UserError(
            f"accelerate's gradient_clipping={clip} contradicts "
            f"train.optimizer.clip_norm={norm:g}; make them agree"
        )
    steps = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", "auto"):
        raise UserError(
            f"accelerate's gradient_accumulation_steps={steps}: here it follows from "
            "data.sequences, the number of ranks and train.micro_batch; leave it out"
        )


def _take_fsdp(config: Config, environment: dict[str, str]) -> None:
    if environment.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "accelerate's fsdp_version is 1, which PyTorch no longer develops; set fsdp_version: 2"
        )
    _settle(config, "strategy", "fsdp", "fsdp_config", default="auto")
    if (
        "HYBRID" in environment.get("FSDP_SHARDING_STRATEGY", "").upper()
        and config.parallel.replicas == 1
    ):
        raise UserError(
            "accelerate's fsdp_sharding_strategy is hybrid, but how many replicas there are is not "
            "said; set parallel.replicas"
        )
    if _true(environment, "FSDP_OFFLOAD_PARAMS"):
        _settle(config, "offload", "cpu", "fsdp_offload_params", default="none")
    if _true(environment, "FSDP_ACTIVATION_CHECKPOINTING"):
        _settle(config, "checkpointing", "full", "fsdp_activation_checkpointing", default="none")
    if environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() in ("false", "shard_grad_op"):
        _settle(config, "reshard", False, "fsdp_reshard_after_forward", default=True)


def _check_precision(config: Config, environment: dict[str, str]) -> None:
    asked = environment["ACCELERATE_MIXED_PRECISION"].lower()
    if asked not in ("no", config.train.precision):
        raise UserError(
            f"accelerate's mixed_precision={asked} contradicts "
            f"train.precision={config.train.precision}; make them agree"
        )


def _settle(config: Config, key: str, asked: object, name: str, *, default: object) -> None:
    """Set ``parallel.<key>`` to what the launcher asked for by ``name``, if it has its default."""
    current = getattr(config.parallel, key)
    if current not in (default, asked):
        raise UserError(
            f"accelerate's {name} asks for parallel.{key}={asked}, the config says {current}; "
            "change one of them"
        )
    setattr(config.parallel, key, asked)


def _stage_of(path: str) -> str:
    """The strategy that a DeepSpeed JSON asks for."""
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
        stage = tree["zero_optimization"]["stage"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{path}: no DeepSpeed JSON with zero_optimization.stage; check the file"
        ) from None
    if f"zero{stage}" not in STRATEGIES.names():
        raise UserError(f"{path}: zero_optimization.stage={stage} is not offered; use 1, 2 or 3")
    return f"zero{stage}"


def _true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "false").lower() in ("true", "1", "yes")
