"""The life of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from mmscale.checkpoint.run_state import RetentionPolicy, RunState, read_state
from mmscale.checkpoint.store import CheckpointStore
from mmscale.checkpoint.towers import load_towers
from mmscale.config import Config
from mmscale.data.loading.assembler import Assembler
from mmscale.data.loading.fork_server import start_fork_server
from mmscale.data.loading.loader import MicroBatches, iterate_steps
from mmscale.data.planning.step_plan import Plan, check_world
from mmscale.errors import UserError
from mmscale.optim.guard import StepGuard
from mmscale.optim.learning_rate import learning_rate
from mmscale.parallel.hang import arm_recorder, explain
from mmscale.parallel.launcher import apply_launcher_settings
from mmscale.parallel.ranks import Ranks, join_ranks, leave_ranks, meet_ranks
from mmscale.parallel.strategy import Strategy, build_strategy, check_initial_weights, to_device
from mmscale.plugins import import_plugins
from mmscale.release.init_from import load_initial_weights
from mmscale.train.adversarial import Adversary
from mmscale.train.contrast import contrast_terms
from mmscale.train.gc_freeze import gc_frozen
from mmscale.train.metrics import Metrics
from mmscale.train.prepare import prepare, record
from mmscale.train.profile import StepProfiler, profiled_steps
from mmscale.train.run_lock import hold_run
from mmscale.train.stop import StopSignal

Preflight = Callable[[Config, dist.Store], None]


@dataclass(frozen=True)
class TrainResult:
    """Where a finished run lies and how it ended."""

    run_dir: str
    steps: int
    resumed_from: int
    parameters: int
    tokens: int
    seconds: float
    exit_code: int  # 0: all steps are done; else the run was told to stop, and saved


def train(
    config: Config, until: int | None = None, preflight: Preflight | None = None
) -> TrainResult:
    """Train as ``config`` says, from its newest checkpoint if there is one. Called on every rank.

    Args:
        config: the whole run. until: stop, with a checkpoint, when so many steps are done in all; a
        later call goes on as if there had been
            no stop. None: ``train.steps``.
        preflight: called when the ranks have met, before anything is built; raises if the run shall
            not begin.

    Raises:
        UserError: bad config, data that cannot be used, or a checkpoint that does not fit.
    """
    began = time.perf_counter()
    import_plugins(config.plugins)  # in workers of Ray nobody else has
    apply_launcher_settings(config)
    folder = Path(config.run.dir)
    arm_recorder(folder / "hang")
    if config.data.workers:
        start_fork_server()
    meeting = meet_ranks(config.parallel.timeout_s)
    if preflight is not None:
        preflight(config, meeting)
    ranks = join_ranks(config.parallel, meeting)
    try:
        check_world(config.data.sequences, ranks.data_world)
        with hold_run(folder, ranks):
            return _train(config, ranks, until, began)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"rank {ranks.rank} is out of memory ({str(error).split('.')[0]}); lower "
            "train.micro_batch, set "
            "parallel.checkpointing=full, or take more ranks"
        ) from None
    except RuntimeError as error:
        line = explain(error, ranks.rank, config.parallel.timeout_s, folder / "hang")
        if line is None:
            raise
        raise UserError(line) from None
    finally:
        leave_ranks()


def _train(config: Config, ranks: Ranks, until: int | None, began: float) -> TrainResult:
    """The run itself, among ranks that have joined; ``began``: when, by `time.perf_counter`."""
    folder = Path(config.run.dir)
    end = config.train.steps if until is None else min(until, config.train.steps)
    profiled = profiled_steps(config.train.profile_steps, config.train.steps)
    keep = RetentionPolicy(config.train.keep_last, config.train.keep_every, config.train.keep_best)
    store = CheckpointStore(folder / "checkpoints", keep, config.run.copy_to)
    newest = store.newest()
    if config.model.attention == "flex" and ranks.device.type == "cpu":
        raise UserError("model.attention=flex: has no backward pass on a CPU; use auto")
    if newest is None:
        check_initial_weights(config, config.parallel.strategy)
    tokenizer, plan = prepare(config, ranks, read_state(newest).step if newest else 0)
    strategy = build_strategy(config, ranks)
    state = _resume(config, plan, store, newest, strategy)
    record(config, plan, ranks)
    store.copy_found()
    adversary = Adversary(config, strategy)

    data = MicroBatches(
        plan, Assembler(config, plan, tokenizer), steps=end,
        micro_batch=config.train.micro_batch, rank=ranks.data_rank, world=ranks.data_world,
    )  # fmt: skip
    steps = iterate_steps(
        data, state.step, workers=config.data.workers, prefetch=config.data.prefetch,
        pin_memory=ranks.device.type == "cuda",
    )  # fmt: skip
    metrics = Metrics(config, ranks, plan, state)
    guard = StepGuard(
        config.train.max_grad_spike, state.norm_mean, state.step - state.skipped, ranks.device
    )
    profiler = StepProfiler(profiled, folder / "profile", ranks.rank)
    finished, tokens, last = state.step, 0, end - 1
    strategy.model.train()
    with StopSignal(config.train.grace_s) as stop, closing(metrics), closing(profiler), gc_frozen():
        for step in range(state.step, end):
            profiler.before(step)
            waiting = time.perf_counter()
            batches = next(steps)
            wait = time.perf_counter() - waiting

            losses = {name: torch.zeros((), device=ranks.device) for name in metrics.losses}
            batches = [
                adversary.harden(to_device(batch, config.parallel, ranks)) for batch in batches
            ]
            contrast = contrast_terms(
                strategy, ranks, plan.step(step), batches, config.data.contrast_sequences
            )
            for number, (batch, terms) in enumerate(zip(batches, contrast, strict=True)):
                parts = strategy.forward_backward(batch, number == len(batches) - 1, terms)
                losses = {name: losses[name] + parts[name] for name in metrics.losses}

            sums = metrics.reduce(losses, batches, wait, stop.code)
            lr = learning_rate(config.train.optimizer, step, config.train.steps)
            grad_norm, skip = strategy.update(step, lr, partial(guard.should_skip, losses=sums))

            tokens += plan.step(step).tokens
            metrics.record(step, sums, grad_norm, skip, lr, wait)
            profiler.after(step)
            finished = step + 1
            if finished % config.train.checkpoint_every == 0 or step == last or metrics.stop_code:
                metrics.sync()
                done = RunState(
                    finished,
                    plan.fingerprint(finished),
                    metrics.seen,
                    metrics.bad,
                    metrics.skipped,
                    float(guard.norm_mean),
                    metrics.mean_loss(),
                )
                store.save(strategy.state_tensors(), done)
            if metrics.stop_code:
                break
        store.wait()
        metrics.flush()
    if store.failure:
        raise UserError(store.failure)
    if metrics.stop_code and ranks.is_first:
        print(
            f"mmscale: stopped as told after step {finished - 1}, and saved; the same command goes "
            "on",
            file=sys.stderr,
        )
    return TrainResult(
        config.run.dir,
        finished,
        state.step,
        strategy.parameters,
        tokens,
        time.perf_counter() - began,
        metrics.stop_code if finished < end else 0,
    )


def _resume(
    config: Config, plan: Plan, store: CheckpointStore, newest: Path | None, strategy: Strategy
) -> RunState:
    if newest is None:
        load_towers(strategy.model, config)
        if config.model.init_from:
            load_initial_weights(strategy.model, config.model)
        return RunState(0, plan.fingerprint(0))
    if config.train.resume == "never":
        raise UserError(
            f"{newest}: train.resume=never, but the run has a checkpoint; choose another run.dir"
        )
    state = read_state(newest)
    strategy.restore(partial(store.restore, newest), state.step - state.skipped)
    if state.fingerprint != plan.fingerprint(state.step):
        raise UserError(
            f"{newest}: was trained on other data or another order (seed, data.* or media.* "
            "changed); "
            "restore them, or choose another run.dir"
        )
    if state.step > config.train.steps:
        raise UserError(
            f"{newest}: is past train.steps={config.train.steps}; raise it, or choose another "
            "run.dir"
        )
    return state
