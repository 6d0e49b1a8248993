"""ZeRO by DeepSpeed: moments (stage 1), gradients (2), weights (3) divided over the ranks
(Rajbhandari et al., 2020).

`deepspeed.initialize` gets our optimiser, so that rates, decays and moments are those of every
other strategy, and the same rule decides whether a step is taken. DeepSpeed keeps weights and
moments in flat float32 pieces. `zero_pieces.py` knows which piece belongs to which parameter, so
checkpoints hold named tensors as they do elsewhere.

DeepSpeed reads the gradients' norm on the host in every step, and leaves a step out itself if the
norm is not finite.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from mmscale.batch import Batch
from mmscale.config import Config
from mmscale.errors import UserError
from mmscale.model.fusion import FusionTransformer
from mmscale.model.grad_cache import ContrastTerms
from mmscale.model.initialise import draw
from mmscale.optim.optimizer import build_optimizer, parameter_groups
from mmscale.parallel.build import Builder, build_model
from mmscale.parallel.costs import StandIn
from mmscale.parallel.deepspeed_build_lock import clear_stale_lock
from mmscale.parallel.deepspeed_config import deepspeed_settings
from mmscale.parallel.ranks import Ranks
from mmscale.parallel.strategy import Strategy
from mmscale.parallel.zero_costs import stand_in
from mmscale.parallel.zero_pieces import Pieces
from mmscale.registry import OPTIMIZERS

# DeepSpeed reads the rank on this machine from the environment. For a process without a launcher
# the variable is set here.
_set_local_rank = False


class ZeroStrategy(Strategy):
    """A DeepSpeed engine behind the interface of `Strategy`.

    It makes the model itself, not by the builder: stage 3 divides a parameter as soon as it is
    made, and DeepSpeed overwrites what was drawn before. `stand_in` says what a dry run builds.
    """

    stage: ClassVar[int]
    deepspeed_json = True

    def __init__(
        self, config: Config, ranks: Ranks, compute: torch.dtype, builder: Builder
    ) -> None:
        deepspeed = _import_deepspeed(ranks)
        self._config, self._ranks = config, ranks
        settings = deepspeed_settings(config, ranks, compute)
        # Stage 3 divides every parameter as soon as it is made.
        divided = self.stage == 3
        place: Any = nullcontext()
        if divided:
            offload = config.parallel.offload
            where = None if offload == "none" else offload
            place = deepspeed.zero.Init(config_dict_or_path=settings, remote_device=where)
        self.model = model = build_model(config, ranks, place)
        if divided:
            _set_units(deepspeed, model)
        self._shapes = {
            name: torch.Size(getattr(parameter, "ds_shape", parameter.shape))
            for name, parameter in self.model.named_parameters()
        }
        self.parameters = sum(shape.numel() for shape in self._shapes.values())

        optimizer = config.train.optimizer
        groups = parameter_groups(self.model, self._shapes, optimizer, config.model)
        assert {group["kind"] for group in groups} == {optimizer.name}, "DeepSpeed takes one"
        self._kind = OPTIMIZERS[optimizer.name]
        self._inner = build_optimizer(optimizer.name, groups, optimizer, compute)
        self._guard = _StepQuestion(self._inner, ranks.device)
        self._engine, self._zero, *_ = deepspeed.initialize(
            model=self.model, optimizer=self._inner, config=settings, dist_init_required=False
        )
        self._guard.norm = lambda: self._zero._global_grad_norm
        self._pieces = Pieces(self.model, self._shapes, self._zero, ranks, self._kind)
        self._mesh = init_device_mesh(ranks.device.type, (ranks.world,), mesh_dim_names=("shard",))
        # DeepSpeed's float32 weights come from the compute type's; ours are drawn in float32.
        for name in self._shapes:
            whole = torch.empty(self._shapes[name])
            draw(name, whole, config.model, config.seed)
            self._pieces.write("weight", name, whole)
        self._allocate(0)
        self._pieces.refresh()

    @torch.no_grad()
    def embeddings(self, batch: Batch) -> dict[str, Tensor]:
        """See `Strategy`."""
        embeddings: dict[str, Tensor] = self._engine.module(batch, None, True)
        return embeddings

    def forward_backward(
        self, batch: Batch, last: bool, contrast: ContrastTerms | None = None
    ) -> dict[str, Tensor]:
        """See `Strategy`."""
        self._engine.set_gradient_accumulation_boundary(last)
        losses = self._engine(batch, contrast)
        # DeepSpeed takes the mean over ranks; losses are divided by the step's counts.
        whole = torch.stack(list(losses.values())).sum() * self._ranks.world
        self._engine.backward(whole, scale_wrt_gas=False)
        return {name: loss.detach() for name, loss in losses.items()}

    def update(
        self, step: int, lr: float, should_skip: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See `Strategy`."""
        for group in self._inner.param_groups:
            group["lr"] = lr * group["lr_factor"]
        self._guard.should_skip, self._guard.verdict = should_skip, None
        self._engine.step()
        if self._guard.verdict is None:  # DeepSpeed found the norm not finite, and took no step
            norm = torch.full((), torch.inf, device=self._ranks.device)
            verdict = should_skip(norm)
        else:
            norm, verdict = self._guard.verdict
        if self._config.train.ema:
            self._pieces.average(self._config.train.ema, step, verdict)
        return norm, verdict

    def state_tensors(self) -> dict[str, Tensor]:
        """See `Strategy`. Copies: each rank's rows of every tensor."""
        return {
            f"{prefix}.{name}": self._pieces.read(kind, name, self._mesh)
            for prefix, kind in self._kinds().items()
            for name in self._shapes
        }

    def restore(self, load: Callable[[dict[str, Tensor]], None], updates: int) -> None:
        """See `Strategy`."""
        self._allocate(updates)
        tensors = self.state_tensors()
        load(tensors)
        for prefix, kind in self._kinds().items():
            for name in self._shapes:
                tensor: Any = tensors[f"{prefix}.{name}"]
                self._pieces.write(kind, name, tensor.full_tensor().cpu())
        self._pieces.refresh()

    @classmethod
    def check(cls, config: Config) -> None:
        """See `Strategy`."""
        check_zero(config, cls.name)
        super().check(config)

    @classmethod
    def stand_in(cls, config: Config, world: int) -> StandIn:
        """See `Strategy`."""
        return stand_in(cls.stage, config, world)

    def _allocate(self, updates: int) -> None:
        self._pieces.allocate(updates, averages=bool(self._config.train.ema))

    def _kinds(self) -> dict[str, str]:
        kinds = {"model": "weight", **{name: name for name in self._kind.moments}}
        return kinds | ({"ema": "average"} if self._config.train.ema else {})


def forget_groups() -> None:
    """Called when the ranks part: DeepSpeed would keep using their groups in the next run of this
    process.
    """
    global _set_local_rank
    if _set_local_rank:
        os.environ.pop("LOCAL_RANK", None)
        _set_local_rank = False
    comm, groups = sys.modules.get("deepspeed.comm.comm"), sys.modules.get("deepspeed.utils.groups")
    if comm is None or groups is None:
        return
    comm.cdb = None  # type: ignore[attr-defined]
    for name, value in vars(groups).items():
        if name.endswith("_GROUP") or name == "mesh_device":
            setattr(groups, name, {} if isinstance(value, dict) else None)


class _StepQuestion:
    """Asks, at the first of the pieces DeepSpeed lets ``optimizer`` update in a step, whether the
    step is taken.
    """

    norm: Callable[[], Any]
    should_skip: Callable[[Tensor], Tensor]
    verdict: tuple[Tensor, Tensor] | None = None

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._device = device
        optimizer.register_step_pre_hook(self._before)

    @torch.no_grad()
    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Called by torch, once a piece."""
        if self.verdict is None:
            norm = torch.as_tensor(self.norm(), dtype=torch.float32).to(self._device)
            self.verdict = norm, self.should_skip(norm)
        optimizer.found_inf = self.verdict[1]


def check_zero(config: Config, name: str) -> None:
    """Refuse what no stage does, ``name`` among them."""
    if not OPTIMIZERS[config.train.optimizer.name].elementwise:
        fitting = [other for other, kind in OPTIMIZERS.all().items() if kind.elementwise]
        raise UserError(
            f"train.optimizer.name={config.train.optimizer.name}: DeepSpeed's pieces are no "
            f"matrices, so {name} needs {' or '.join(fitting)}; or use parallel.strategy=fsdp"
        )


def _import_deepspeed(ranks: Ranks) -> Any:
    global _set_local_rank
    if ranks.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if "LOCAL_RANK" not in os.environ:
        os.environ["LOCAL_RANK"], _set_local_rank = str(ranks.local_rank), True
    try:
        import deepspeed
    except ImportError:
        raise UserError(
            "parallel.strategy: zero1, zero2 and zero3 need DeepSpeed; pip install "
            "'mmscale[deepspeed]'"
        ) from None
    if ranks.device.type == "cpu":
        clear_stale_lock("deepspeed_shm_comm", reports=ranks.is_first)
    deepspeed.init_distributed()  # finds the process group we joined
    return deepspeed


def _set_units(deepspeed: Any, model: FusionTransformer) -> None:
    """Let stage 3 gather a stem or a block at once, as FSDP does.

    Within a stem the ranks may run their layers unequally often, and every gathering needs all of
    them.
    """
    for unit in (model.image_stem, model.audio_stem, *model.blocks):
        deepspeed.utils.set_z3_leaf_module(unit, True)
    for stem in (model.image_stem, model.audio_stem):
        stem.register_forward_pre_hook(_want_gradient)
    # Read by the model itself, although it is its embedding's.
    deepspeed.zero.register_external_parameter(model, model.embedding.weight)


def _want_gradient(stem: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """DeepSpeed knows by the gradient of a unit's input that its backward pass is over; data have
    none of their own.
    """
    return inputs[0].float().requires_grad_(), *inputs[1:]
