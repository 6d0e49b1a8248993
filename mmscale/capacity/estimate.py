"""From a dry step to memory on a GPU, and to the time of a step: compute, exposed communication,
data.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmscale.batch import Batch
from mmscale.capacity.dry_run import DryStep, embeds_first
from mmscale.config import Config
from mmscale.gpu import GpuSpec
from mmscale.model.flops import Flops
from mmscale.parallel.costs import CommunicationTime, Traffic
from mmscale.registry import STRATEGIES

_RESERVE, _FRAGMENTED = 1.5e9, 1.05  # bytes of CUDA and NCCL themselves; what the allocator loses


@dataclass(frozen=True)
class Assumptions:
    """What the estimate rests on beside the data sheet; every figure is shown with it.

    Attributes:
        efficiency: share of the rated bf16 products that a step's arithmetic reaches while it
            computes (torchtitan and OLMo-core report 0.4 to 0.55 of whole steps on H100).
        overlap: share of the computing time behind which gathering and summing can hide.
        pictures, clips: a loader worker's samples a second (docs/benchmarks.md).
    """

    efficiency: float = 0.55
    overlap: float = 0.9
    pictures: float = 400.0
    clips: float = 1600.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Of one way to run; times in seconds per step, memory in bytes per rank."""

    memory: dict[str, int]
    host: int  # what is offloaded
    needed: float
    fits: bool
    model_flops: float  # of a step, all ranks, nothing counted twice
    computed_flops: float  # of a step on one rank, what is computed again included
    compute_s: float
    exchange_s: float  # all communication
    exposed_s: float  # what is not hidden behind computing
    update_s: float
    data_s: float  # loading
    data_exposed_s: float
    step_s: float
    tokens_per_s: float
    mfu: float


def estimate(
    config: Config,
    dry: DryStep,
    batch: Batch,
    *,
    world: int,
    per_node: int,
    gpu: GpuSpec,
    assume: Assumptions,
) -> Estimate:
    """``dry`` is of ``batch``, one micro-batch of this config."""
    parallel = config.parallel
    data_world = world // (parallel.tensor * parallel.context)
    sequences = config.data.sequences // data_world
    micro = len(batch.tokens_BL)
    passes = sequences / micro
    needed = dry.memory["total"] * _FRAGMENTED + _RESERVE

    forward = _attention_and_all(config, batch)
    shared = parallel.tensor * parallel.context
    # Forward, twice as much backward, and what is computed again.
    times = 3.0 + (parallel.checkpointing == "full") + embeds_first(config)
    if config.train.adversarial.on:  # forward and backward for each of its steps
        times += config.train.adversarial.steps * (3.0 + (parallel.checkpointing == "full"))
    attention = times * forward["attention"] / shared
    computed = passes * (dry.flops + attention)
    compute_s = computed / (gpu.bf16 * assume.efficiency)

    traffic = Traffic(sent=dry.sent, passes=passes, world=world, per_node=per_node, gpu=gpu)
    exchange: CommunicationTime = STRATEGIES[parallel.strategy].communication_time(
        traffic, parallel
    )
    hidden_s = assume.overlap * compute_s * exchange.behind
    exposed_s = exchange.exposed_s + max(0.0, exchange.hideable_s - hidden_s)

    state = dry.memory.get("weights", 0) + dry.memory.get("optimiser", 0)
    update_s = 3.0 * state / gpu.memory_rate  # gradients read, state read and written
    busy = compute_s + exposed_s + update_s
    pictures, clips = len(batch.image_N3HW) * passes, len(batch.audio_NFM) * passes
    workers = max(1, config.data.workers)
    data_s = (pictures / assume.pictures + clips / assume.clips) / workers
    data_exposed_s = max(0.0, data_s - busy)
    step_s = busy + data_exposed_s
    tokens = config.data.seq_len * config.data.sequences
    model = 3.0 * sum(forward.values()) * config.data.sequences / micro
    return Estimate(
        memory=dry.memory,
        host=dry.host,
        needed=needed,
        fits=needed <= gpu.memory,
        model_flops=model,
        computed_flops=computed,
        compute_s=compute_s,
        exchange_s=exchange.hideable_s + exchange.exposed_s,
        exposed_s=exposed_s,
        update_s=update_s,
        data_s=data_s,
        data_exposed_s=data_exposed_s,
        step_s=step_s,
        tokens_per_s=tokens / step_s,
        mfu=model / (step_s * world * gpu.bf16),
    )


def _attention_and_all(config: Config, batch: Batch) -> dict[str, float]:
    """FLOPs of a forward pass: of attention's squares, and of the rest."""
    costs = Flops(config.model, config.media, config.model.vocab_size)
    squares = 0
    for row in batch.segment_BL:
        lengths = row[row > 0].unique(return_counts=True)[1]
        squares += int((lengths.long() ** 2).sum())
    whole = costs.sequence(
        {
            "tokens": int((batch.segment_BL > 0).sum()),
            "squares": squares,
            "image_tokens": len(batch.image_take_T),
            "audio_tokens": len(batch.audio_take_T),
            # A dry batch teaches these two alone (`Objective.lay_dry`).
            "predictions": len(batch.objectives["next_token"]["at_T"]),
            "contrastive": len(batch.objectives["contrastive"]["at_T"]),
        }
    )
    attention = costs.per_square * squares
    return {"attention": attention, "rest": float(whole) - attention}
