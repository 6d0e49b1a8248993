"""How a run learns."""

from __future__ import annotations

from dataclasses import dataclass

from mmscale.config.keys import key
from mmscale.registry import OPTIMIZERS


@dataclass(kw_only=True)
class OptimizerConfig:
    name: str = key(
        "adamw",
        "adamw, or muon: Muon for the blocks' matrices, AdamW for the rest.",
        choices=OPTIMIZERS.names,
    )
    lr: float = key(1e-3, "Peak learning rate.", low=0.0)
    momentum: float = key(
        0.95, "Muon: share of the running sum of gradients that is kept.", low=0.0
    )
    beta1: float = key(0.9, "AdamW: decay of the first moment.", low=0.0)
    beta2: float = key(0.95, "AdamW: decay of the second moment.", low=0.0)
    eps: float = key(1e-8, "AdamW: epsilon.", low=1e-30)
    weight_decay: float = key(
        0.1, "Decoupled weight decay of matrices; vectors are not decayed.", low=0.0
    )
    warmup_steps: int = key(100, "Steps of linear warm-up.", low=0)
    schedule: str = key(
        "cosine",
        "After the warm-up: cosine; wsd: constant, then decay; constant.",
        choices=("cosine", "wsd", "constant"),
    )
    decay_share: float = key(
        0.2, "wsd: share of the steps, at the end, in which the rate decays.", low=0.0
    )
    final_lr: float = key(0.1, "Learning rate at the last step, as a share of the peak.", low=0.0)
    clip_norm: float = key(1.0, "Gradients are clipped to this global norm; 0: off.", low=0.0)


@dataclass
class AdversarialConfig:
    """Training on the worst pictures and clips nearby (Madry et al., 2018) instead of those of the
    data.
    """

    image: float = key(
        0.0,
        "Largest change of a colour value, of 255, such as 2; 0: pictures are not changed.",
        low=0.0,
    )
    audio: float = key(
        0.0,
        "Largest change of a log-mel value, such as 0.05, which is 2 dB; 0: clips are not changed.",
        low=0.0,
    )
    steps: int = key(
        1, "Gradient steps that search for the worst change; 1: one from a random start.", low=1
    )
    share: float = key(1.0, "Share of the pictures and clips that are changed.", low=0.0)

    @property
    def on(self) -> bool:
        """Whether anything is changed."""
        return self.share > 0 and (self.image > 0 or self.audio > 0)

    def describe(self) -> str:
        """What is done, on one line for people."""
        return (
            f"projected gradient, {self.steps} steps, {self.share:.0%} of pictures within "
            f"{self.image:g}/255 and of clips within {self.audio:g} of log-mel"
        )


@dataclass(kw_only=True)
class TrainConfig:
    steps: int = key(1000, "Optimiser steps.", low=1, high=1e12)
    micro_batch: int = key(
        1, "Sequences of one forward pass on one rank. The rest of the step is accumulated.", low=1
    )
    precision: str = key(
        "bf16", "Compute type. Weights and moments are fp32 in both.", choices=("fp32", "bf16")
    )
    optimizer: OptimizerConfig = key(OptimizerConfig, "How weights follow gradients.")
    ema: float = key(
        0.0, "Decay of the moving average of the weights, such as 0.999; 0: no average.", low=0.0
    )
    checkpoint_every: int = key(
        500, "Steps between checkpoints. The last step is always saved.", low=1
    )
    keep_last: int = key(
        2, "Number of newest checkpoints that are kept. The next two keys keep more.", low=1
    )
    keep_every: int = key(0, "Also keep checkpoints whose step this divides; 0: off.", low=0)
    keep_best: bool = key(
        False, "Also keep the checkpoint with the lowest mean training loss since the previous one."
    )
    grace_s: float = key(
        120.0,
        "Seconds to save a checkpoint after a stop (SIGTERM, SIGUSR1, SIGINT). Then the process "
        "ends anyway.",
        low=1.0,
        high=1e6,
    )
    resume: str = key(
        "auto",
        "auto: resume from the newest whole checkpoint of run.dir; never: refuse a used run.dir.",
        choices=("auto", "never"),
    )
    max_skipped: int = key(
        10,
        "Number of steps that may be skipped because loss or gradient is not finite, or spikes. "
        "More end the run.",
        low=0,
    )
    max_grad_spike: float = key(
        0.0,
        "Skip a step whose gradient norm is more than this many times its running mean, such as "
        "10; 0: off.",
        low=0.0,
    )
    profile_steps: str = key(
        "", "Steps A-B whose trace is written to run.dir/profile, one file per rank; such as 10-12."
    )
    adversarial: AdversarialConfig = key(AdversarialConfig, "Adversarial training.")
    log_every: int = key(1, "Steps between lines of metrics.jsonl.", low=1)
