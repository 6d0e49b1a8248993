"""The life of a run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmscale.checkpoint.begin import begin_from
from mmscale.checkpoint.store import CheckpointStore, RunState, read_state
from mmscale.checkpoint.towers import load_towers
from mmscale.config import Config
from mmscale.data.assemble import Assembler
from mmscale.data.loader import MicroBatches, iterate_steps
from mmscale.data.plan import Plan, check_world
from mmscale.errors import UserError
from mmscale.parallel.ranks import join_ranks, leave_ranks
from mmscale.parallel.strategy import build_strategy, clip_gradients
from mmscale.train.adversarial import Adversary
from mmscale.train.contrast import contrast_terms
from mmscale.train.ema import Ema
from mmscale.train.guard import StepGuard
from mmscale.train.metrics import LOSSES, Metrics
from mmscale.train.optimizer import TrainOptimizer
from mmscale.train.prepare import prepare
from mmscale.train.schedule import learning_rate


@dataclass(frozen=True)
class TrainResult:
    """Where a finished run lies and how it ended."""

    run_dir: str
    steps: int
    resumed_from: int
    parameters: int
    tokens: int
    seconds: float


def train(config: Config) -> TrainResult:
    """Train as ``config`` says, from its newest checkpoint if there is one. Called on every rank.

    Raises:
        UserError: bad config, data that cannot be used, or a checkpoint that does not fit.
    """
    began = time.perf_counter()
    ranks = join_ranks(config.parallel)
    try:
        check_world(config.data.sequences, ranks.world)
        tokenizer, plan = prepare(config, ranks)
        strategy = build_strategy(config, ranks)
        model = strategy.model
        optimizer = TrainOptimizer(model, config.train.optimizer, config.model)
        adversary = Adversary(config, strategy)
        ema = Ema(model, config.train.ema) if config.train.ema else None
        store = CheckpointStore(Path(config.run.dir) / "checkpoints", config.train.keep_last)
        state = _resume(config, plan, store, model, optimizer, ema)

        data = MicroBatches(
            plan, Assembler(config, plan, tokenizer), steps=config.train.steps,
            micro_batch=config.train.micro_batch, rank=ranks.rank, world=ranks.world,
        )  # fmt: skip
        steps = iterate_steps(
            data, state.step, workers=config.data.workers, prefetch=config.data.prefetch,
            pin_memory=ranks.device.type == "cuda",
        )  # fmt: skip
        metrics = Metrics(config, ranks, plan, state)
        guard = StepGuard(
            config.train.max_grad_spike, state.norm_mean, state.step - state.skipped, ranks.device
        )
        first, tokens = state.step, 0
        model.train()
        try:
            for step in range(first, config.train.steps):
                waiting = time.perf_counter()
                batches = next(steps)
                wait = time.perf_counter() - waiting

                losses = {name: torch.zeros((), device=ranks.device) for name in LOSSES}
                batches = [adversary.harden(batch.to(ranks.device)) for batch in batches]
                contrast = contrast_terms(strategy, plan.step(step), batches, config.data.contrast_sequences)
                for number, (batch, terms) in enumerate(zip(batches, contrast, strict=True)):
                    parts = strategy.forward_backward(batch, number == len(batches) - 1, terms)
                    losses = {name: losses[name] + parts[name] for name in LOSSES}

                grad_norm = clip_gradients(model, config.train.optimizer.clip_norm)
                lr = learning_rate(config.train.optimizer, step, config.train.steps)
                optimizer.set_learning_rate(lr)
                sums = metrics.reduce(losses, batches)
                skip = guard.judge(grad_norm, sums)
                optimizer.step(skip)
                optimizer.zero_grad()
                if ema is not None:
                    ema.update(step)

                tokens += plan.step(step).tokens
                metrics.record(step, sums, grad_norm, skip, lr, plan.step(step).tokens, wait)
                if (step + 1) % config.train.checkpoint_every == 0 or step + 1 == config.train.steps:
                    metrics.flush()
                    done = RunState(
                        step + 1, plan.fingerprint(step + 1), metrics.seen, metrics.bad, metrics.skipped,
                        float(guard.norm_mean),
                    )  # fmt: skip
                    store.save(state_tensors(model, optimizer, ema), done)
            store.wait()
        finally:
            metrics.finish()
        return TrainResult(
            config.run.dir, config.train.steps, first, sum(p.numel() for p in model.parameters()), tokens,
            time.perf_counter() - began,
        )  # fmt: skip
    finally:
        leave_ranks()


def state_tensors(model: nn.Module, optimizer: TrainOptimizer, ema: Ema | None) -> dict[str, Tensor]:
    """Everything a checkpoint holds, by name."""
    weights = {f"model.{name}": parameter.data for name, parameter in model.named_parameters()}
    return weights | optimizer.state_tensors() | (ema.state_tensors() if ema is not None else {})


def _resume(
    config: Config,
    plan: Plan,
    store: CheckpointStore,
    model: nn.Module,
    optimizer: TrainOptimizer,
    ema: Ema | None,
) -> RunState:
    newest = store.newest()
    if newest is None:
        load_towers(model, config)
        if config.model.init_from:
            begin_from(model, config.model)
        return RunState(0, plan.fingerprint(0))
    if config.train.resume == "never":
        raise UserError(f"{newest}: train.resume=never, but the run has a checkpoint; choose another run.dir")
    state = read_state(newest)
    optimizer.allocate(state.step - state.skipped)
    store.restore(newest, state_tensors(model, optimizer, ema))
    if state.fingerprint != plan.fingerprint(state.step):
        raise UserError(
            f"{newest}: was trained on other data or another order (seed, data.* or media.* changed); "
            "restore them, or choose another run.dir"
        )
    if state.step > config.train.steps:
        raise UserError(
            f"{newest}: is past train.steps={config.train.steps}; raise it, or choose another run.dir"
        )
    return state
