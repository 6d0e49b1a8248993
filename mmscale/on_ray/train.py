"""``mmscale train --ray N``: the same run with workers of Ray Train as its ranks."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmscale.config import Config
from mmscale.errors import UserError
from mmscale.on_ray.connect import process_needs, ray_cluster, wait_for_room
from mmscale.on_ray.workers import leave_rays_group, make_trainer, meet_anew
from mmscale.parallel.launcher_watch import end_with_parent
from mmscale.train.loop import Preflight, TrainResult, train


def train_on_ray(
    config: Config, fewest: int, most: int, preflight: Preflight | None = None
) -> TrainResult:
    """Train with ``most`` ranks, or with ``fewest`` at least where the cluster has no room, or no
    longer has it.

    A lost worker or node starts all ranks again on what is left, from the newest checkpoint; with
    room for more they are started again too. run.dir must be seen by every node. ``preflight``: see
    `train`.

    Raises:
        UserError: as `train`; no room within ``ray.wait_s``; lost more often than
            ``ray.max_failures``.
    """
    with ray_cluster(config.ray, quiet=False, trains=True) as ray:
        from ray.train.v2.api.exceptions import TrainingFailedError

        process = process_needs(ray, config.ray)
        wait_for_room(ray, [process] * fewest, config.ray.wait_s, "the run")
        folder = Path(config.run.dir).absolute()
        trainer = make_trainer(
            _work, {"config": config, "preflight": preflight, "directory": os.getcwd()},
            workers=most if fewest == most else (fewest, most), process=process,
            max_failures=config.ray.max_failures, storage=str(folder / "ray"), name="train",
        )  # fmt: skip
        try:
            facts = trainer.fit().return_value
        except TrainingFailedError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UserError(
                f"{folder}: gave up after {config.ray.max_failures} new starts (ray.max_failures): "
                f"{lines[-1][:300]}"
            ) from None
    if "failed" in facts:
        raise UserError(facts["failed"])
    return TrainResult(**facts["result"])


def _work(sent: dict[str, Any]) -> dict[str, Any]:
    end_with_parent()
    leave_rays_group()
    os.chdir(sent["directory"])
    meet_anew()
    try:
        return {"result": asdict(train(sent["config"], preflight=sent["preflight"]))}
    except UserError as error:
        print(f"mmscale: error: rank {os.environ['RANK']}: {error}", flush=True)
        return {"failed": str(error)}  # not raised: a new start would meet it again
    except SystemExit:
        return {"failed": "the first rank reports why"}
