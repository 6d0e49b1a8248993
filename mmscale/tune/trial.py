"""One trial, as it runs on a worker of the cluster: train to the next stop, score, report; again
until it is stopped.

Everything a trial knows lies in its run.dir, which every machine of the cluster must see. A trial
that is started again, on whatever machine, resumes from its newest checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmscale.config import Config
from mmscale.config_file import to_tree
from mmscale.durable import make_folder, write_durably
from mmscale.errors import UserError
from mmscale.parallel.launcher_watch import end_with_parent
from mmscale.plugins import import_plugins
from mmscale.tune.records import FILE, read_lines

_SCORES = "stops.jsonl"
_POINTER = "pointer.json"


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """What all trials of a search share; sent to the workers."""

    folder: str  # the search's run.dir, absolute
    directory: str  # where the command was given
    metric: str
    stops: list[int]
    workers: int
    process: dict[str, float]  # its CPUs and GPUs
    max_failures: int
    keep_all: bool  # a checkpoint of every stop stays: other trials may continue from it
    plugins: tuple[str, ...] = ()  # of the search's config


def run_trial(
    sampled: dict[str, Any], job: TrialJob, config_of: Callable[[dict[str, Any]], Config]
) -> None:
    """The trainable of Ray Tune. ``sampled``: what the search suggested; ``config_of`` makes a
    config of its point.
    """
    from ray import tune

    end_with_parent()  # a lost node's worker must not train beside the one that takes its place
    folder = Path(job.folder) / "trials" / tune.get_context().get_trial_name()
    try:
        if not (Path(job.folder) / FILE).is_file():
            raise UserError(
                f"{socket.gethostname()} does not see {job.folder}; put run.dir where all machines "
                "of the cluster see it"
            )
        import_plugins(job.plugins, job.directory)
        config = config_of(sampled["trial"]["point"])
        exchange = _take_over(folder, tune.get_checkpoint())
        claim_folder(folder, config, job, taken_over=exchange is not None)
        config = trial_config(config, folder, job)
    except UserError as error:
        tune.report({"failed": str(error)})
        return

    def report(facts: dict[str, Any]) -> None:
        nonlocal exchange
        facts = {**facts, **({"exchange": exchange} if exchange else {})}
        exchange = None
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / _POINTER).write_text(
                json.dumps({"folder": str(folder), "step": facts.get("step", 0)})
            )
            tune.report(facts, checkpoint=tune.Checkpoint.from_directory(place))

    if job.workers == 1:
        os.chdir(job.directory)
        for facts in train_to_stops(config, job):
            report(facts)
    else:
        _run_on_workers(config, job, folder)


def claim_folder(folder: Path, config: Config, job: TrialJob, taken_over: bool = False) -> None:
    """Empty ``folder`` unless it is this very config's, scored by this metric: another's scores
    must not be believed.

    The first line of its scores names their config. ``taken_over``: what lies there is to be
    continued.
    """
    tree = to_tree(config)
    for name in ("run", "tune", "ray"):  # where, and how many: the run is the same
        del tree[name]
    text = json.dumps([tree, job.metric], sort_keys=True)
    head = {"of": hashlib.sha256(text.encode()).hexdigest()}
    rows = read_lines(folder / _SCORES)
    if rows[:1] != [head]:
        rows = [head]
        if not taken_over:
            shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    # Whole lines only: one cut short by a crash must not swallow the next one.
    write_durably(folder / _SCORES, "".join(json.dumps(row) + "\n" for row in rows))


def trial_config(config: Config, folder: Path, job: TrialJob) -> Config:
    """``config`` as a trial in ``folder`` runs it."""
    config.run.dir = str(folder)
    config.run.progress = config.run.tensorboard = False
    config.run.trackers = []
    config.train.resume = "auto"
    config.train.keep_last, config.train.keep_best = 1, False
    config.train.keep_every = job.stops[0] if job.keep_all else 0
    # The machine is shared with other trials.
    config.parallel.threads = config.parallel.threads or max(1, int(job.process["CPU"]))
    tokenizer = Path(job.folder) / "tokenizer.json"
    if tokenizer.is_file() and not config.model.init_from:
        config.data.tokenizer.file = str(tokenizer)
    return config


def train_to_stops(
    config: Config, job: TrialJob, meet: Callable[[], None] | None = None
) -> Iterator[dict[str, Any]]:
    """Train, on every rank; after each stop yield ``step``, ``score``, ``seconds`` and ``node``, or
    why it ``failed``.

    The folder is one that `claim_folder` has seen. The last score of an earlier start is
    yielded again: it may not have been received. ``meet`` is called before each run.
    """
    from mmscale.train.loop import train
    from mmscale.train.prepare import finished_steps

    folder, first = Path(config.run.dir), os.environ.get("RANK", "0") == "0"
    done = finished_steps(folder)
    scored = [row for row in read_lines(folder / _SCORES)[1:] if row["step"] <= done]
    if scored:
        yield scored[-1]
    for stop in job.stops:
        if scored and stop <= scored[-1]["step"]:
            continue
        began = time.perf_counter()
        try:
            if meet is not None:
                meet()
            train(config, until=stop)
            facts: dict[str, Any] = {"step": stop}
            if first:
                facts["score"] = read_score(folder, job.metric, stop)
        except (UserError, SystemExit) as error:  # another rank's error ends this one by itself
            yield {"failed": str(error)}
            return
        facts |= {"seconds": time.perf_counter() - began, "node": socket.gethostname()}
        if first:
            with open(folder / _SCORES, "a", encoding="utf-8") as file:
                file.write(json.dumps(facts) + "\n")
        yield facts


def read_score(folder: Path, metric: str, step: int) -> float:
    """``tune.metric`` of a run after ``step`` steps."""
    if metric == "loss":
        rows = read_lines(folder / "metrics.jsonl")
        losses = [row["loss"] for row in rows if step - max(1, step // 5) <= row["step"] < step]
        return sum(losses) / len(losses) if losses else float(rows[-1]["loss"])
    from mmscale.evaluate.run import evaluate

    name, _, value = metric.rpartition(".")
    return float(evaluate(folder, tasks=[name], progress=False)[name][value])


def _run_on_workers(config: Config, job: TrialJob, folder: Path) -> None:
    """The trial as a run of its own on ``job.workers`` workers, whose reports go through to
    Tune.
    """
    from ray.tune.integration.ray_train import TuneReportCallback

    from mmscale.on_ray.workers import make_trainer

    make_trainer(
        _work, {"config": config, "job": job}, workers=job.workers, process=job.process,
        max_failures=job.max_failures, storage=str(Path(job.folder) / "ray" / "workers"),
        name=folder.name, callbacks=[TuneReportCallback()],
    ).fit()  # fmt: skip


def _work(sent: dict[str, Any]) -> None:
    from ray import train as ray_train

    from mmscale.on_ray.workers import leave_rays_group, meet_anew

    end_with_parent()
    leave_rays_group()
    os.chdir(sent["job"].directory)
    for facts in train_to_stops(sent["config"], sent["job"], meet_anew):
        ray_train.report(facts)


def _take_over(folder: Path, pointer: Any) -> dict[str, Any] | None:
    """If Tune gave this trial another's checkpoint, make it this trial's own; the exchange, for the
    records.
    """
    if pointer is None:
        return None
    with pointer.as_directory() as place:
        origin = json.loads((Path(place) / _POINTER).read_text())
    parent = Path(origin["folder"])
    if parent == folder:
        return None
    source = parent / "checkpoints" / f"step-{origin['step']:08d}"
    if not source.is_dir():
        raise UserError(f"{source}: is gone, and {folder.name} was to continue from it")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder / "checkpoints" / source.name)
    for path in parent.iterdir():
        if path.is_file() and path.name != _SCORES:
            shutil.copyfile(path, folder / path.name)
    return {"parent": parent.name, "step": origin["step"]}
