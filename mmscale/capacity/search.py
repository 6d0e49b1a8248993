"""Which strategy, micro-batch and checkpointing of a config are the fastest that fit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field, replace

from mmscale.capacity.dry_batch import dry_batch
from mmscale.capacity.dry_run import dry_run
from mmscale.capacity.estimate import Assumptions, Estimate, estimate
from mmscale.config import Config, ParallelConfig
from mmscale.data.planning.step_plan import check_world
from mmscale.errors import UserError
from mmscale.gpu import GpuSpec
from mmscale.parallel.costs import StandIn
from mmscale.parallel.float8 import no_products
from mmscale.parallel.strategy import check_initial_weights, check_strategy, usual_strategy
from mmscale.registry import STRATEGIES

_WORTH = 0.99  # share of the best time so far that another round of tries must come below
_AT_ONCE = 2  # dry runs; each takes a core
_HOWS = ("none", "selective", "full")  # checkpointing


@dataclass(frozen=True)
class Candidate:
    """Settings that change how a step is split, and not what it computes."""

    strategy: str
    micro_batch: int
    checkpointing: str
    _: KW_ONLY
    replicas: int = 1
    tensor: int = 1
    offload: str = "none"
    deepspeed_config: str = ""

    def lines(self, config: Config) -> list[str]:
        """As ``key=value`` overrides of ``config``, also where only that sets a key."""
        settings = [
            f"parallel.strategy={self.strategy}",
            f"parallel.checkpointing={self.checkpointing}",
            f"train.micro_batch={self.micro_batch}",
        ]
        for name in _OTHERS:
            value = getattr(self, name)
            if not value == getattr(_USUAL, name) == getattr(config.parallel, name):
                settings.append(f"parallel.{name}={value}")
        return settings


_OTHERS, _USUAL = ("replicas", "tensor", "offload", "deepspeed_config"), ParallelConfig()


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Plans one config on ``world`` GPUs of one kind, ``per_node`` per machine."""

    config: Config
    world: int
    per_node: int
    gpu: GpuSpec
    assume: Assumptions
    _known: dict[Candidate, Estimate] = field(default_factory=dict)

    def own_way(self) -> Candidate:
        """What the config says."""
        parallel = self.config.parallel
        name = parallel.strategy
        if name == "auto":
            name = usual_strategy(self.world)
        split = {key: getattr(parallel, key) for key in _OTHERS}
        return Candidate(name, self.config.train.micro_batch, parallel.checkpointing, **split)

    def evaluate(self, way: Candidate) -> Estimate:
        """By a dry run, once per way. Raises `UserError` if the config cannot run this way."""
        if way in self._known:
            return self._known[way]
        config = copy.deepcopy(self.config)
        parallel = config.parallel
        parallel.strategy, parallel.checkpointing = way.strategy, way.checkpointing
        config.train.micro_batch = way.micro_batch
        for key in _OTHERS:
            setattr(parallel, key, getattr(way, key))
        if self.world % (way.replicas * way.tensor * parallel.context):
            raise UserError(
                f"parallel.replicas, tensor and context do not divide {self.world} GPUs"
            )
        data_world = self.world // (way.tensor * parallel.context)
        check_world(config.data.sequences, data_world)
        per_rank = config.data.sequences // data_world
        micro = min(way.micro_batch, per_rank)
        config.check()
        check_strategy(config, way.strategy)
        check_initial_weights(config, way.strategy)
        if parallel.float8 not in ("", "emulated"):
            if not self.gpu.float8:
                raise no_products(parallel.float8, self.gpu.name)
            parallel.float8 = ""  # no CPU has them; operands that are kept are bf16 either way
        stand_in: StandIn = STRATEGIES[way.strategy].stand_in(config, self.world)
        passes = 1 if stand_in.one_pass else -(-per_rank // micro)
        dry = dry_run(stand_in.config, self.world, micro, passes=passes).beside(stand_in)
        figures = self._known[way] = estimate(
            stand_in.config,
            dry,
            dry_batch(config, micro),
            world=self.world,
            per_node=self.per_node,
            gpu=self.gpu,
            assume=self.assume,
        )
        return figures

    def search(self, report: Callable[[str], None]) -> list[tuple[Candidate, Estimate]]:
        """Ways that fit, the fastest first: the config's own, checkpointing, then replicas and
        larger micro-batches of the best.

        Without offloading, whose time is not counted, if that fits; with it only where the config
        asks for it.
        """
        estimates: dict[Candidate, Estimate] = {}
        usual = [Candidate(name, 1, how) for name in _tried(self.world) for how in _HOWS]
        self._try([self.own_way(), *usual], estimates, report)
        if self.config.parallel.offload == "cpu" and all(
            figures.host for _, figures in _fitting(estimates)
        ):
            # Also on one GPU, by a strategy that is for several.
            names = [name for name in _tried(2) if "cpu" in STRATEGIES[name].offloads]
            ways = [Candidate(name, 1, how, offload="cpu") for name in names for how in _HOWS]
            self._try(ways, estimates, report)
        if self.world > 1 and not _fitting(estimates):
            names = [name for name in _tried(self.world) if "tensor" in STRATEGIES[name].parts]
            sizes = [size for size in (2, 4, 8) if size <= self.per_node]
            ways = [Candidate(name, 1, "full", tensor=size) for name in names for size in sizes]
            self._try(ways, estimates, report)
        last_s = math.inf
        for _ in range(2):
            best = _fitting(estimates)
            if not best:
                break
            way, figures = best[0]
            if figures.step_s > _WORTH * last_s:
                break  # the round before gained next to nothing
            last_s = figures.step_s
            # Activations grow with the micro-batch; weights, moments and gradients do not.
            room = self.gpu.memory - figures.needed > 0.9 * figures.memory.get("activations", 0)
            ways = []
            per_rank = (
                self.config.data.sequences * way.tensor * self.config.parallel.context // self.world
            )
            if room and 2 * way.micro_batch <= per_rank:
                ways.append(replace(way, micro_batch=2 * way.micro_batch))
            nodes = self.world // self.per_node
            alone = "replicas" in STRATEGIES[way.strategy].parts and way.tensor == 1
            if alone and way.replicas == 1 and nodes > 1 and self.world % self.per_node == 0:
                ways.append(replace(way, replicas=nodes))
            state = (
                figures.memory.get("weights", 0) + figures.memory.get("optimiser", 0) + figures.host
            )
            whole = alone and self.world > 1 and self.config.parallel.context == 1
            if whole and state * self.world // way.replicas < self.gpu.memory:
                ways += [
                    Candidate(name, way.micro_batch, way.checkpointing)
                    for name in _tried(self.world, whole_fits=True)
                    if name not in _tried(self.world)
                ]
            self._try(ways, estimates, report)
        return _fitting(estimates)

    def _try(
        self,
        ways: list[Candidate],
        estimates: dict[Candidate, Estimate],
        report: Callable[[str], None],
    ) -> None:
        def attempt(way: Candidate) -> Estimate | UserError:
            try:
                return self.evaluate(way)
            except UserError as error:
                return error  # a way that this config does not allow

        ways = [way for way in dict.fromkeys(ways) if way not in estimates]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for way, result in zip(ways, pool.map(attempt, ways), strict=True):
                settings = " ".join(way.lines(self.config))
                if isinstance(result, UserError):
                    report(f"{settings}: is refused: {result}")
                    continue
                estimates[way] = result
                state = f"{result.step_s:.2f} s per step" if result.fits else "does not fit"
                report(f"{settings}: {result.needed / 1e9:.1f} GB, {state}")


def _tried(world: int, *, whole_fits: bool = False) -> list[str]:
    """The strategies that a search tries by itself."""
    return [name for name, kind in STRATEGIES.all().items() if kind.is_tried(world, whole_fits)]


def _fitting(estimates: dict[Candidate, Estimate]) -> list[tuple[Candidate, Estimate]]:
    fitting = [(way, figures) for way, figures in estimates.items() if figures.fits]
    return sorted(fitting, key=lambda pair: (pair[1].host > 0, pair[1].step_s))
