"""One small interface for every way to split a model over ranks.

In every strategy the weights, the optimiser's moments and the summed gradients are fp32; ``bf16``
means that forward and backward see bf16 copies of the weights. The gradient of a step is the *sum*
over micro-batches and ranks, because every loss is already divided by the whole step's count.

A strategy is a class in the file of `mmscale.parallel.strategies` that has its name. What others
ask about it before it is built (which keys go with it, how it is planned) are its class's
attributes and methods: nothing outside of its file compares names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from mmscale.batch import Batch
from mmscale.config import Config, ParallelConfig
from mmscale.config.parallel import check_parallel
from mmscale.errors import UserError
from mmscale.model.grad_cache import ContrastTerms
from mmscale.parallel.build import Builder
from mmscale.parallel.costs import CommunicationTime, StandIn, Traffic
from mmscale.parallel.ranks import Ranks
from mmscale.registry import STRATEGIES

COMPUTE_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_PARTS = ("replicas", "tensor", "context")


class Strategy:
    """A model that lies on its devices and knows how to sum gradients over the ranks.

    Args:
        config: the whole run.
        ranks: this process's place; the ranks have joined.
        compute: the type of forward and backward.
        builder: makes the model.

    Attributes:
        parts: those of ``parallel.replicas``, ``tensor`` and ``context`` that may be above 1.
        offloads: the places of ``parallel.offload`` that it knows.
        float8: whether ``parallel.float8`` goes with it.
        deepspeed_json: whether it reads ``parallel.deepspeed_config``.
        adversarial: whether it gives gradients of inputs (`input_losses`).
        takes_weights: whether a run can begin under it with others' weights.
        plan_note: a line for the end of its plan.
        parameters: of the whole model.
    """

    name: ClassVar[str]
    parts: ClassVar[tuple[str, ...]] = ()
    offloads: ClassVar[tuple[str, ...]] = ()
    float8: ClassVar[bool] = False
    deepspeed_json: ClassVar[bool] = False
    adversarial: ClassVar[bool] = False
    takes_weights: ClassVar[bool] = False
    plan_note: ClassVar[str] = ""

    model: nn.Module
    parameters: int

    def __init__(
        self, config: Config, ranks: Ranks, compute: torch.dtype, builder: Builder
    ) -> None:
        raise _missing(self, "__init__")

    def forward_backward(
        self, batch: Batch, last: bool, contrast: ContrastTerms | None = None
    ) -> dict[str, Tensor]:
        """Losses of a micro-batch (detached float32 scalars); gradients are added to the
        parameters'.

        ``contrast`` replaces the batch's own contrastive loss. ``last`` marks the step's last
        micro-batch, after which the gradients are summed over all ranks.
        """
        raise _missing(self, "forward_backward")

    def input_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a micro-batch, from which gradients of its inputs can be taken. No gradient of
        a weight is sent.
        """
        raise _missing(self, "input_losses")

    def embeddings(self, batch: Batch) -> dict[str, Tensor]:
        """`FusionTransformer.forward` with ``embeddings_only``, without gradients."""
        raise _missing(self, "embeddings")

    def update(
        self, step: int, lr: float, should_skip: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Clip the gradients, update weights, moments and averages, forget the gradients.

        ``should_skip`` gets the gradients' norm, and returns 1 if nothing may be changed, else 0.
        Returns both: float32 scalars, equal on every rank.
        """
        raise _missing(self, "update")

    def state_tensors(self) -> dict[str, Tensor]:
        """Weights, moments and averages for a checkpoint, by name: fp32, whole or sharded; names
        are of no strategy.
        """
        raise _missing(self, "state_tensors")

    def restore(self, load: Callable[[dict[str, Tensor]], None], updates: int) -> None:
        """Let ``load`` fill the state tensors, as they were after so many ``updates``."""
        raise _missing(self, "restore")

    @classmethod
    def check_keys(cls, parallel: ParallelConfig) -> None:
        """Refuse keys of ``parallel`` that do not go with this strategy. Raises `UserError`."""
        chosen = f"parallel.strategy={cls.name}"
        for part in _PARTS:
            size = getattr(parallel, part)
            if size > 1 and part not in cls.parts:
                fitting = _names("parts", part)
                raise UserError(f"parallel.{part}={size}: needs {fitting}, not {chosen}; use 1")
        if parallel.float8 and not cls.float8:
            fitting = _names("float8")
            raise UserError(f"parallel.float8={parallel.float8}: not with {chosen}; use {fitting}")
        place = parallel.offload
        if place != "none" and place not in cls.offloads:
            fitting = _names("offloads", place)
            raise UserError(
                f"parallel.offload={place}: not with {chosen}; use {fitting}, or leave it none"
            )
        if parallel.deepspeed_config and not cls.deepspeed_json:
            fitting = _names("deepspeed_json")
            raise UserError(
                f"parallel.deepspeed_config: is for {fitting}, not {chosen}; leave it empty"
            )

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse what the run asks for and this strategy does not do. Raises `UserError`."""
        if not config.train.adversarial.on:
            return
        if not cls.adversarial:
            raise UserError(
                f"train.adversarial: not with parallel.strategy={cls.name}; use "
                f"{_names('adversarial')}"
            )
        if config.parallel.context > 1:
            raise UserError(
                f"train.adversarial: not with parallel.context={config.parallel.context}; use 1"
            )

    @classmethod
    def check_world(cls, world: int) -> None:
        """Refuse a number of ranks. Raises `UserError`."""

    @classmethod
    def stand_in(cls, config: Config, world: int) -> StandIn:
        """What a dry run of this strategy on ``world`` ranks runs: by default the strategy itself,
        with tensors without memory. Raises `UserError` if it cannot be planned.
        """
        return StandIn(config=config)

    @classmethod
    def communication_time(cls, traffic: Traffic, parallel: ParallelConfig) -> CommunicationTime:
        """The time its communication takes. Raises `UserError` if it does not say so."""
        raise UserError(
            f"parallel.strategy={cls.name}: does not say how long its communication takes "
            "(Strategy.communication_time), so it cannot be planned; use another strategy"
        )

    @classmethod
    def is_tried(cls, world: int, whole_fits: bool) -> bool:
        """Whether the search for the fastest way tries it by itself on ``world`` ranks.
        ``whole_fits``: all weights and moments fit on each of them.
        """
        return False


def to_device(batch: Batch, config: ParallelConfig, ranks: Ranks) -> Batch:
    """The batch where this rank computes; on CPUs, where padding costs what tokens cost, without
    that at its end.

    A GPU's compiled code is for one length; so is the division of positions over ranks.
    """
    if ranks.device.type == "cpu" and config.context == 1:
        batch = batch.trimmed()
    return batch.to(ranks.device)


def usual_strategy(world: int) -> str:
    """What ``parallel.strategy: auto`` means on so many ranks."""
    return "fsdp" if world > 1 else "single"


def check_strategy(config: Config, name: str) -> None:
    """Refuse what the run asks for and the strategy ``name`` does not do, before anything is built.

    Raises `UserError` naming the key and the remedy.
    """
    check_parallel(replace(config.parallel, strategy=name))
    STRATEGIES[name].check(config)


def check_initial_weights(config: Config, name: str) -> None:
    """Refuse to begin a run with others' weights where the strategy ``name`` cannot. It can
    continue such a run. ``auto`` can begin it, whatever it will mean.
    """
    if name == "auto" or STRATEGIES[name].takes_weights:
        return
    for key in ("image_tower", "audio_tower", "init_from"):
        if getattr(config.model, key):
            raise UserError(
                f"model.{key}: {name} cannot begin with others' weights; begin with "
                "parallel.strategy=fsdp, and continue with any strategy from its first checkpoint"
            )


def build_strategy(config: Config, ranks: Ranks, builder: Builder | None = None) -> Strategy:
    """The strategy ``config.parallel.strategy`` names, with the model built and its weights drawn.

    Args:
        builder: makes the model; None: as training does.

    Raises:
        UserError: the strategy does not fit the number of ranks, or what the run asks for.
    """
    name = config.parallel.strategy
    if name == "auto":
        name = usual_strategy(ranks.world)
    kind: type[Strategy] = STRATEGIES[name]
    kind.check_world(ranks.world)
    check_strategy(config, name)
    return kind(config, ranks, COMPUTE_TYPES[config.train.precision], builder or Builder())


def _names(attribute: str, value: str | None = None) -> str:
    """The strategies that have an attribute, or a value in it, for a message."""
    fitting = []
    for name, kind in STRATEGIES.all().items():
        has = getattr(kind, attribute)
        if has if value is None else value in has:
            fitting.append(name)
    *most, last = fitting
    return f"{', '.join(most)} or {last}" if most else last


def _missing(strategy: Strategy, method: str) -> AssertionError:
    return AssertionError(f"{type(strategy).__name__} has no {method}")
