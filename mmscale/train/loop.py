"""The life of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
from mmscale.data.loading.loader import LoadedStep, MicroBatches, iterate_steps
from mmscale.data.planning.step_plan import Plan, check_world
from mmscale.data.prefetching.prefetcher import Prefetcher, fetch_ahead
from mmscale.errors import UserError
from mmscale.messages import report
from mmscale.optim.guard import StepGuard
from mmscale.optim.learning_rate import learning_rate
from mmscale.parallel.hang import arm_recorder, explain
from mmscale.parallel.launcher import apply_launcher_settings
from mmscale.parallel.machine import find_machine
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


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Where a finished run lies and how it ended."""

    run_dir: str
    steps: int
    resumed_from: int
    parameters: int
    tokens: int
    seconds: float
    exit_code: int  # 0: all steps are done; else the run was asked to stop, and saved


def train(
    config: Config, until: int | None = None, preflight: Preflight | None = None
) -> TrainResult:
    """Train as ``config`` says, from its newest checkpoint if there is one. Called on every rank.

    Args:
        config: the whole run.
        until: stop, with a checkpoint, when so many steps are done in all. A later call continues
            as if there had been no stop. None: ``train.steps``.
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
            "train.micro_batch, set parallel.checkpointing=full, or take more ranks"
        ) from None
    except RuntimeError as error:
        line = explain(error, ranks.rank, config.parallel.timeout_s, folder / "hang")
        if line is None:
            raise
        raise UserError(line) from None
    finally:
        leave_ranks()


@dataclass(kw_only=True)
class _Run:
    """Everything that a step needs, and how far the run is."""

    config: Config
    ranks: Ranks
    plan: Plan
    start: RunState  # what this start begins or resumes from
    end: int  # steps that are done when this start is over
    strategy: Strategy
    adversary: Adversary
    steps: Iterator[LoadedStep]
    prefetcher: Prefetcher
    guard: StepGuard
    metrics: Metrics
    profiler: StepProfiler
    store: CheckpointStore
    stop: StopSignal
    finished: int  # steps that are done
    tokens: int = 0  # seen since this start


def _train(config: Config, ranks: Ranks, until: int | None, began: float) -> TrainResult:
    """The run itself, among ranks that have joined; ``began``: when, by `time.perf_counter`."""
    run = _open_run(config, ranks, until)
    _fit(run)
    if run.store.failure:
        raise UserError(run.store.failure)
    if run.metrics.stop_code and ranks.is_first:
        report(
            f"stopped on request after step {run.finished - 1}, and saved; "
            "the same command resumes it"
        )
    return TrainResult(
        run_dir=config.run.dir,
        steps=run.finished,
        resumed_from=run.start.step,
        parameters=run.strategy.parameters,
        tokens=run.tokens,
        seconds=time.perf_counter() - began,
        exit_code=run.metrics.stop_code if run.finished < run.end else 0,
    )


def _open_run(config: Config, ranks: Ranks, until: int | None) -> _Run:
    """Build or resume everything that the first step needs. `record` comes when nothing can refuse
    this start any more.
    """
    folder, train = Path(config.run.dir), config.train
    end = train.steps if until is None else min(until, train.steps)
    profiled = profiled_steps(train.profile_steps, train.steps)
    keep = RetentionPolicy(train.keep_last, train.keep_every, train.keep_best)
    store = CheckpointStore(folder / "checkpoints", keep, config.run.copy_to)
    newest = store.newest()
    _check_start(config, ranks, newest)

    tokenizer, plan = prepare(config, ranks, read_state(newest).step if newest else 0)
    strategy = build_strategy(config, ranks)
    state = _resume(config, plan, store, newest, strategy)
    record(config, plan, ranks)
    store.copy_found()

    adversary = Adversary(config, strategy)
    machine = find_machine(ranks)
    # A machine fetches no more than its own part of a step. What every machine has at hand is dealt
    # among all ranks: at costs more equal, and to the same ranks on any machines.
    node = machine.readers if plan.is_remote else range(ranks.data_world)
    prefetcher = fetch_ahead(
        plan,
        config.data.cache,
        node=node,
        world=ranks.data_world,
        local_rank=machine.local_rank,
        ranks=machine.ranks,
        steps=range(state.step, end),
        run=machine.start,
    )
    data = MicroBatches(
        plan,
        Assembler(config, plan, tokenizer),
        steps=end,
        micro_batch=train.micro_batch,
        rank=ranks.data_rank,
        world=ranks.data_world,
        node=node,
    )
    steps = iterate_steps(
        data,
        state.step,
        workers=config.data.workers,
        prefetch=config.data.prefetch,
        pin_memory=ranks.device.type == "cuda",
    )
    taken = state.step - state.skipped
    return _Run(
        config=config,
        ranks=ranks,
        plan=plan,
        start=state,
        end=end,
        strategy=strategy,
        adversary=adversary,
        steps=steps,
        prefetcher=prefetcher,
        metrics=Metrics(config, ranks, plan, state),
        guard=StepGuard(train.max_grad_spike, state.norm_mean, taken, ranks.device),
        profiler=StepProfiler(profiled, folder / "profile", ranks.rank),
        store=store,
        stop=StopSignal(train.grace_s),
        finished=state.step,
    )


def _fit(run: _Run) -> None:
    """Every step that is left, with the checkpoints between them, until the end or a stop."""
    run.strategy.model.train()
    with (
        run.stop,
        closing(run.metrics),
        closing(run.profiler),
        closing(run.prefetcher),
        gc_frozen(),
    ):
        for step in range(run.start.step, run.end):
            run.profiler.before(step)
            _step(run, step)
            run.profiler.after(step)
            run.finished = step + 1
            if _checkpoint_is_due(run):
                _save(run)
            if run.metrics.stop_code:
                break
        run.store.wait()
        run.metrics.flush()


def _step(run: _Run, step: int) -> None:
    """Wait for the step's micro-batches, learn from them, update the weights, note the numbers."""
    config, ranks = run.config, run.ranks
    loaded = next(run.steps)
    run.prefetcher.consumed(step)
    batches = [
        run.adversary.harden(to_device(batch, config.parallel, ranks)) for batch in loaded.batches
    ]
    planned = run.plan.step(step)
    contrast = contrast_terms(run.strategy, ranks, planned, batches, config.data.contrast_sequences)
    losses = {name: torch.zeros((), device=ranks.device) for name in run.metrics.loss_names}
    for number, (batch, terms) in enumerate(zip(batches, contrast, strict=True)):
        parts = run.strategy.forward_backward(batch, number == len(batches) - 1, terms)
        losses = {name: losses[name] + parts[name] for name in run.metrics.loss_names}

    sums = run.metrics.reduce(losses, batches, loaded.wait_s, run.stop.code)
    lr = learning_rate(config.train.optimizer, step, config.train.steps)
    grad_norm, skip = run.strategy.update(step, lr, partial(run.guard.should_skip, losses=sums))
    run.metrics.record(
        step, sums=sums, grad_norm=grad_norm, skip=skip, lr=lr, wait=loaded.wait_s,
        fetching=run.prefetcher.figures() if ranks.is_first else {},
    )  # fmt: skip
    run.tokens += planned.tokens


def _checkpoint_is_due(run: _Run) -> bool:
    """At every so many steps, at the last one, and at a stop."""
    every = run.config.train.checkpoint_every
    return run.finished % every == 0 or run.finished == run.end or run.metrics.stop_code != 0


def _save(run: _Run) -> None:
    """A checkpoint of the steps that are done, written beside the training that continues."""
    run.metrics.sync()
    state = RunState(
        step=run.finished,
        fingerprint=run.plan.fingerprint(run.finished),
        seen=run.metrics.seen,
        bad=run.metrics.bad,
        skipped=run.metrics.skipped,
        norm_mean=float(run.guard.norm_mean),
        loss=run.metrics.mean_loss(),
    )
    run.store.save(run.strategy.state_tensors(), state)


def _check_start(config: Config, ranks: Ranks, newest: Path | None) -> None:
    """Refuse what cannot be trained, before anything is built."""
    if config.model.attention == "flex" and ranks.device.type == "cpu":
        raise UserError("model.attention=flex: has no backward pass on a CPU; use auto")
    if newest is None:
        check_initial_weights(config, config.parallel.strategy)


def _resume(
    config: Config, plan: Plan, store: CheckpointStore, newest: Path | None, strategy: Strategy
) -> RunState:
    if newest is None:
        load_towers(strategy.model, config)
        if config.model.init_from:
            load_initial_weights(strategy.model, config.model)
        return RunState(step=0, fingerprint=plan.fingerprint(0))
    if config.train.resume == "never":
        raise UserError(
            f"{newest}: train.resume=never, but the run has a checkpoint; choose another run.dir"
        )
    state = read_state(newest)
    strategy.restore(partial(store.restore, newest), state.step - state.skipped)
    if state.fingerprint != plan.fingerprint(state.step):
        raise UserError(
            f"{newest}: was trained on other data or another order (seed, data.* or media.* "
            "changed); restore them, or choose another run.dir"
        )
    if state.step > config.train.steps:
        raise UserError(
            f"{newest}: is past train.steps={config.train.steps}; raise it, or choose another "
            "run.dir"
        )
    return state
