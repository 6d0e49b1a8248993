"""Does the best rate hold for a larger model? The best trial's rate, its half and its double, tried
on it.

With muP (``model.base_width``; Yang et al., 2022) it should; without, the best rate falls as the
width grows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmscale.config import Config
from mmscale.errors import UserError
from mmscale.messages import report
from mmscale.tune.records import Trial
from mmscale.tune.space import Point, Space, format_point

RATE = "train.optimizer.lr"
FACTORS = (0.5, 1.0, 2.0)
_TRIED = 50  # points of the space, before the larger model is given up


@dataclass
class Transfer:
    """Scores of the larger model by rate; None where the run failed."""

    overrides: Point = field(default_factory=dict)
    scores: dict[float, float | None] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """For JSON."""
        return [{"rate": rate, "score": score} for rate, score in self.scores.items()]

    def describe(self, better: str, rate_found: float) -> str:
        """One line for people."""
        done = {rate: score for rate, score in self.scores.items() if score is not None}
        if not done:
            return "the larger model could not be trained at any of the rates"
        best = (min if better == "min" else max)(done, key=lambda rate: done[rate])
        verdict = (
            "the rate holds"
            if best == rate_found
            else f"the rate does not hold: {best:.3g} is better"
        )
        listed = ", ".join(f"{rate:.3g}: {score:.4g}" for rate, score in done.items())
        return f"with {format_point(self.overrides)}, {verdict} ({listed})"


def check_transfer(config: Config, space: Space) -> Point:
    """``tune.transfer`` as a point. Raises `UserError` if no point of the space makes a larger
    model that can be.
    """
    overrides = space.overrides(config.tune.transfer)
    fault: UserError | None = None
    for number in range(_TRIED if overrides else 0):
        point = space.draw(config.seed, number)
        try:
            space.config(point)
        except UserError:
            continue  # passed over by the search too
        try:
            space.config({**point, **overrides}, "tune.transfer")
            return overrides
        except UserError as error:
            fault = error
    if fault is not None:
        raise fault
    return overrides


def transfer_rates(
    *, ray: Any, config: Config, space: Space, best: Trial, overrides: Point, folder: Path
) -> Transfer:
    """Train the larger model, which ``overrides`` make, at the three rates, on the cluster; what is
    done stays.

    Whatever fails has no score and is reported in a line.
    """
    from mmscale.on_ray.connect import process_needs, wait_for_room
    from mmscale.tune.trial import TrialJob

    tune = config.tune
    best_rate = float(best.point.get(RATE, config.train.optimizer.lr))
    larger = Transfer(overrides, dict.fromkeys((best_rate * factor for factor in FACTORS), None))
    steps = int(overrides.get("train.steps", config.train.steps))
    process = process_needs(ray, config.ray)
    process["CPU"] *= tune.workers  # in one process
    job = TrialJob(
        folder=str(folder),
        directory=os.getcwd(),
        metric=tune.metric,
        stops=[steps],
        workers=1,
        process=process,
        max_failures=config.ray.max_failures,
        keep_all=False,
    )
    remote = ray.remote(
        num_cpus=process["CPU"], num_gpus=process.get("GPU", 0), max_retries=job.max_failures
    )(_train_larger)
    waiting = []
    try:
        wait_for_room(ray, [process], config.ray.wait_s, "the larger model")
        for factor in FACTORS:
            rate = best_rate * factor
            made = space.config({**best.point, **overrides, RATE: rate}, "tune.transfer")
            waiting.append((rate, remote.remote(made, job, f"rate-{factor:g}")))
    except UserError as error:
        report(f"no score of the larger model: {error}")
    for rate, score in waiting:
        try:
            larger.scores[rate] = ray.get(score)
        # Raised there, out of memory, or a process or machine was lost.
        except ray.exceptions.RayError as error:
            lines = str(getattr(error, "cause", None) or error).strip().splitlines()
            report(f"no score of the larger model at rate {rate:.3g}: {lines[-1].strip()[:300]}")
    return larger


def _train_larger(config: Config, job: Any, name: str) -> float:
    """On a worker: one run of the larger model, and its score."""
    from mmscale.tune.trial import claim_folder, train_to_stops, trial_config

    os.chdir(job.directory)
    folder = Path(job.folder) / "transfer" / name
    claim_folder(folder, config, job)
    *_, facts = train_to_stops(trial_config(config, folder, job), job)
    if "failed" in facts:
        raise UserError(facts["failed"])
    return float(facts["score"])
