"""A search, from its space to its best settings.

run.dir/tune.jsonl      what happened, as it happened; --resume continues from it
run.dir/trials/         a run.dir for each trial
run.dir/best.yaml       the best trial's config, for `mmscale train`
run.dir/trials.parquet  a row for each trial
run.dir/tune.html       parallel coordinates and learning curves
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmscale.config import SCORES, Config
from mmscale.config_file import to_tree
from mmscale.errors import UserError
from mmscale.messages import report
from mmscale.on_ray.connect import import_ray, process_needs, ray_cluster, wait_for_room
from mmscale.train.run_lock import hold_search
from mmscale.tune.records import Records, trial_name
from mmscale.tune.space import Point, Space
from mmscale.tune.transfer import Transfer, check_transfer, transfer_rates


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """How a search ended."""

    run_dir: str
    trials: int
    finished: int
    stopped: int
    failed: int
    steps: int  # of all trials together
    best_trial: str
    best_score: float
    best_point: Point
    best_config: str  # path of best.yaml
    # Rate, score of the larger model; None: it could not be trained.
    transfer: list[dict[str, float | None]]


def tune(config: Config, resume: bool = False) -> TuneResult:
    """Search ``config.tune.space``; the results lie in ``run.dir``.

    Raises:
        UserError: a space or metric that is wrong, no room on the cluster, or no trial that gave a
        score. KeyboardInterrupt: from the keyboard, after the trials were stopped; ``resume``
        continues them.
    """
    import_ray()
    from mmscale.tune.report import write_report
    from mmscale.tune.search import Search
    from mmscale.tune.watch import best_trial

    space = Space(config)
    check_metric(config)
    larger_model = check_transfer(config, space)
    folder = Path(config.run.dir).absolute()
    with hold_search(folder):
        records = Records(folder, _job_facts(config, space), resume)
        _prepare_once(config, folder)
        with ray_cluster(config.ray, trains=config.tune.workers > 1) as ray:
            search = Search(config, space, records)
            if search.most:
                _run_trials(
                    ray=ray,
                    config=config,
                    space=space,
                    records=records,
                    search=search,
                    folder=folder,
                )
            trials = list(records.trials.values())
            best = best_trial(trials, config.tune.better())
            if best is None:
                raise UserError(
                    f"{folder}: no trial gave a score; the first one's reason: "
                    f"{next((trial.reason for trial in trials if trial.reason), 'unknown')}"
                )
            larger = Transfer()
            write = partial(
                write_report, folder=folder, config=config, space=space, trials=trials, best=best
            )
            path = write(larger=larger)
            if larger_model:  # now that no result can be lost
                larger = transfer_rates(
                    ray=ray,
                    config=config,
                    space=space,
                    best=best,
                    overrides=larger_model,
                    folder=folder,
                )
                write(larger=larger)
    count = {
        status: sum(trial.status == status for trial in trials)
        for status in ("finished", "stopped", "failed")
    }
    return TuneResult(
        run_dir=str(config.run.dir),
        trials=len(trials),
        finished=count["finished"],
        stopped=count["stopped"],
        failed=count["failed"],
        steps=sum(trial.trained for trial in trials),
        best_trial=best.name,
        best_score=best.score,
        best_point=best.point,
        best_config=str(path),
        transfer=larger.rows(),
    )


def _run_trials(
    *, ray: Any, config: Config, space: Space, records: Records, search: Any, folder: Path
) -> None:
    from ray import tune as ray_tune

    from mmscale.tune.early_stop import make_scheduler
    from mmscale.tune.trial import TrialJob, run_trial
    from mmscale.tune.watch import GiveUp, Watch

    tune = config.tune
    process, max_failures = process_needs(ray, config.ray), config.ray.max_failures
    job = TrialJob(
        folder=str(folder),
        directory=os.getcwd(),
        metric=tune.metric,
        stops=tune.stops(config.train.steps),
        workers=tune.workers,
        process=process,
        max_failures=max_failures,
        keep_all=tune.scheduler == "pbt",
        plugins=tuple(config.plugins),
    )
    # A trial on several workers only waits for them itself.
    own = process if tune.workers == 1 else {"CPU": 0.01}
    needs = [process] * tune.workers + ([own] if tune.workers > 1 else [])
    wait_for_room(ray, needs, config.ray.wait_s, "a trial")
    watch = Watch(ray, config, records, needs, search.most)
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(run_trial, job=job, config_of=space.config), own
    )
    if tune.scheduler == "pbt":  # Ray gives it its whole population at once
        chosen, space_of_ray = {}, {"trial": ray_tune.grid_search(search.population())}
    else:
        chosen, space_of_ray = {"search_alg": search, "num_samples": search.most}, None
    shutil.rmtree(folder / "ray", ignore_errors=True)
    tuner = ray_tune.Tuner(
        trainable,
        param_space=space_of_ray,
        tune_config=ray_tune.TuneConfig(
            scheduler=make_scheduler(config, space, records),
            max_concurrent_trials=tune.concurrent or most_at_once(ray, needs),
            reuse_actors=tune.workers == 1, trial_name_creator=_name, trial_dirname_creator=_name,
            **chosen,
        ),
        run_config=ray_tune.RunConfig(
            name="search", storage_path=str(folder / "ray"), callbacks=[watch],
            stop=GiveUp(watch), verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=max_failures),
        ),
    )  # fmt: skip
    try:
        tuner.fit()
    finally:
        watch.close()
    left = sum(trial.status == "open" for trial in records.trials.values())
    if watch.fault:
        raise UserError(watch.fault)
    if left:
        report(f"{left} trials are not done; the same command with --resume continues them")
        raise KeyboardInterrupt


def most_at_once(ray: Any, needs: list[dict[str, float]]) -> int:
    """Trials for which the cluster has room, by its sums."""
    have = ray.cluster_resources()
    kinds = {kind for process in needs for kind in process}
    room = min(have.get(kind, 0) / sum(process.get(kind, 0) for process in needs) for kind in kinds)
    return max(1, int(room + 1e-6))


def _name(trial: Any) -> str:
    return trial_name(trial.config["trial"]["number"])


def _job_facts(config: Config, space: Space) -> dict[str, Any]:
    """What must be equal for trials to be compared: everything but where, how many and how many at
    once.
    """
    tree = to_tree(config)
    for name in ("run", "tune", "ray"):
        del tree[name]
    tune = config.tune
    return {
        "space": space.describe(),
        "search": tune.search,
        "scheduler": tune.scheduler,
        "metric": f"{tune.better()} {tune.metric}",
        "stops": tune.stops(config.train.steps),
        "config": tree,
    }


def check_metric(config: Config) -> None:
    """Raise `UserError` unless ``tune.metric`` is one that a trial will have."""
    metric = config.tune.metric
    if metric == "loss":
        return
    name, dot, value = metric.rpartition(".")
    if not dot or name not in config.eval:
        known = ", ".join(f"{task}.…" for task in config.eval) or "none, since eval is empty"
        raise UserError(
            f"tune.metric: {metric}: neither loss nor <name>.<value> of eval; names: {known}"
        )
    values = SCORES[config.eval[name].task]
    if value not in values:
        raise UserError(
            f"tune.metric: {name} has no {value or 'value'}; it has {', '.join(values)}"
        )


def _prepare_once(config: Config, folder: Path) -> None:
    """The embedded data and the tokenizer, before many trials would make them side by side."""
    from mmscale.data.index.dataset import Dataset
    from mmscale.train.prepare import prepare_data, prepare_tokenizer

    whole = replace(config, run=replace(config.run, dir=str(folder)))
    prepare_data(whole)
    if config.tune.metric != "loss":  # or every trial would find out after its first stop
        Dataset.open(config.eval[config.tune.metric.rpartition(".")[0]].shards, config.data.cache)
    searched = any(
        name.startswith(("data.tokenizer", "data.sets", "model.init_from"))
        for name in config.tune.space
    )
    if not searched and not config.model.init_from and not (folder / "tokenizer.json").is_file():
        prepare_tokenizer(whole).save(folder / "tokenizer.json")
