"""How a run is split over processes."""

from __future__ import annotations

from dataclasses import dataclass

from mmscale.config.keys import key
from mmscale.errors import UserError
from mmscale.registry import STRATEGIES


def _strategies() -> tuple[str, ...]:
    return ("auto", *STRATEGIES.names())


@dataclass(kw_only=True)
class ParallelConfig:
    strategy: str = key(
        "auto",
        "single: one process; ddp: whole weights on every rank; fsdp: FSDP2, sharded weights; "
        "zero1 to zero3: DeepSpeed. auto: what accelerate's config says; zero2 under DeepSpeed's "
        "launcher; else fsdp if there are several ranks.",
        choices=_strategies,
    )
    replicas: int = key(
        1,
        "fsdp: number of copies of the sharded weights (hybrid sharding). With one machine per "
        "copy, weights are gathered inside it.",
        low=1,
    )
    tensor: int = key(
        1,
        "fsdp: neighbouring ranks that share the matrices of every block (tensor parallelism).",
        low=1,
    )
    context: int = key(
        1,
        "fsdp: neighbouring ranks that share the positions of every sequence (context "
        "parallelism).",
        low=1,
    )
    reshard: bool = key(
        True,
        "fsdp: free a block's gathered weights after its forward pass, and gather them again "
        "for the backward pass.",
    )
    offload: str = key(
        "none",
        "Where weights and moments are kept: none: on the device; cpu: in host memory (fsdp, "
        "zero2, zero3); nvme: in files of parallel.offload_dir (zero3).",
        choices=("none", "cpu", "nvme"),
    )
    offload_dir: str = key("", "nvme: a folder on a fast local disk.")
    deepspeed_config: str = key(
        "",
        "zero1 to zero3: a DeepSpeed JSON file. Its settings are used too. What contradicts "
        "this config is refused.",
    )
    checkpointing: str = key(
        "none",
        "Activations of the blocks that the backward pass computes again: none; full: all; "
        "selective: all but matrix products and attention.",
        choices=("none", "full", "selective"),
    )
    compile: bool = key(
        False,
        "Compile the blocks (torch.compile): faster steps, about a minute more at the start. "
        "CPUs need a C++ compiler.",
    )
    float8: str = key(
        "",
        "Matrix products of the blocks in 8-bit floats (torchao), scaled by tensor or by row. "
        "Needs train.precision=bf16 and a GPU from Ada or Hopper on. emulated: the same "
        "rounding on any machine, slowly.",
        choices=("", "tensorwise", "rowwise", "emulated"),
    )
    threads: int = key(
        0,
        "CPU threads per rank; 0: this machine's cores divided by its ranks.",
        low=0,
        high=4096,
    )
    timeout_s: float = key(
        600.0, "A collective that waits longer ends the run; seconds.", low=1.0, high=1e7
    )


def check_parallel(config: ParallelConfig) -> None:
    """Rules between keys. Raises `UserError` naming the key and the remedy."""
    if config.strategy != "auto":
        STRATEGIES[config.strategy].check_keys(config)
    if config.float8 and config.tensor > 1:
        raise UserError(
            f"parallel.float8={config.float8}: not with parallel.tensor={config.tensor}; use "
            "parallel.tensor=1"
        )
    if config.offload == "nvme" and not config.offload_dir:
        raise UserError(
            "parallel.offload=nvme: parallel.offload_dir is empty; name a folder on a fast local "
            "disk"
        )
