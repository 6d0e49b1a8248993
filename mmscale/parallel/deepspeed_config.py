"""What DeepSpeed gets: this run's config, and the user's own JSON where the two do not
contradict.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from mmscale.config import Config
from mmscale.errors import UserError
from mmscale.parallel.ranks import Ranks
from mmscale.registry import STRATEGIES

_REMEDIES = {
    "optimizer": "train.optimizer",
    "scheduler": "train.optimizer.schedule",
    "fp16": "train.precision (fp16 is not offered)",
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "gradient_clipping": "train.optimizer.clip_norm",
}


def deepspeed_settings(config: Config, ranks: Ranks, compute: torch.dtype) -> dict[str, Any]:
    """The dictionary `deepspeed.initialize` takes. Raises `UserError` for a JSON that contradicts
    the config.
    """
    per_rank = config.data.sequences // ranks.world
    micro = min(config.train.micro_batch, per_rank)
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": -(-per_rank // micro),
        "gradient_clipping": config.train.optimizer.clip_norm,
        "zero_allow_untested_optimizer": True,  # AdamW, with a question before
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": STRATEGIES[config.parallel.strategy].stage,
            # Sums whose order hangs on which bucket is full first would differ between runs.
            "round_robin_gradients": False,
            **_offload(config),
        },
    }
    ours["train_batch_size"] = micro * ours["gradient_accumulation_steps"] * ranks.world
    if compute == torch.bfloat16:
        ours["bf16"] = {"enabled": True, "check_grad_overflow": True}
    if config.parallel.deepspeed_config:
        path = config.parallel.deepspeed_config
        return _merge(path, _read(Path(path)), ours)
    return ours


def _offload(config: Config) -> dict[str, Any]:
    device, stage = config.parallel.offload, STRATEGIES[config.parallel.strategy].stage
    if device == "none":
        return {}
    place: dict[str, Any] = {"device": device, "pin_memory": torch.cuda.is_available()}
    if device == "nvme":
        place["nvme_path"] = config.parallel.offload_dir
    return {"offload_optimizer": place} | ({"offload_param": dict(place)} if stage == 3 else {})


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"parallel.deepspeed_config: {path} cannot be read ({error.strerror})"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"parallel.deepspeed_config: {path} is no JSON ({error})") from None
    if not isinstance(tree, dict):
        raise UserError(f"parallel.deepspeed_config: {path} holds no JSON object")
    return tree


def _merge(
    path: str, theirs: dict[str, Any], ours: dict[str, Any], where: str = ""
) -> dict[str, Any]:
    """``ours`` with what only ``theirs`` says; ``"auto"`` in theirs means ours."""
    merged = dict(ours)
    for name, value in theirs.items():
        full = f"{where}{name}"
        if value == "auto":
            continue
        if not where and name in _REMEDIES and name not in ours:
            enabled = value.get("enabled", True) if isinstance(value, dict) else bool(value)
            if enabled and enabled != "auto":
                raise UserError(
                    f"{path}: {full} is set in the run's config; remove it and set "
                    f"{_REMEDIES[name]}"
                )
            continue
        mine = ours.get(name)
        if isinstance(mine, dict) and isinstance(value, dict):
            merged[name] = _merge(path, value, mine, f"{full}.")
        elif name in ours and mine != value:
            remedy = f"; set {_REMEDIES[name]}" if name in _REMEDIES else ""
            raise UserError(
                f"{path}: {full}={json.dumps(value)} contradicts this run's {json.dumps(mine)}; "
                "make them "
                f'agree, or write "auto"{remedy}'
            )
        else:
            merged[name] = value
    return merged
