"""One step of the real model under the real strategy, without memory: what lives at once, is
computed, and is sent.

Run as a process of its own (`dry_run`), because it joins a process group that pretends to have all
ranks. Tensors are fake (`torch._subclasses.FakeTensorMode`), collectives do nothing, everything
else is the training's own code. What stands in is in `dry_build`.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmscale.config import Config
from mmscale.errors import UserError
from mmscale.messages import write_line
from mmscale.parallel.costs import StandIn
from mmscale.registry import STRATEGIES


@dataclass(frozen=True)
class DryStep:
    """Of one rank and one step; bytes, and FLOPs of the products and convolutions (attention's are
    in `Flops`).
    """

    memory: dict[str, int]  # at the peak, by kind, and their "total"
    flops: float  # of one micro-batch, forward and backward, what is computed again included
    sent: dict[str, int]  # given to collectives in the step's last micro-batch and the update
    host: int = 0  # bytes of weights, gradients and moments that wait in the host's memory

    def beside(self, stand_in: StandIn) -> DryStep:
        """This step of what stands in for a strategy, and what the strategy holds beside it."""
        memory = dict(self.memory)
        for kind, size in stand_in.memory.items():
            for name in (kind, "total"):
                memory[name] = memory.get(name, 0) + size
        return replace(self, memory=memory, host=self.host + stand_in.host)


def dry_run(
    config: Config, world: int, sequences: int, *, passes: int = 1, fused: bool = True
) -> DryStep:
    """Measure a step of ``passes`` micro-batches of ``sequences``, on the first of ``world`` ranks.

    Without ``fused``, attention is the CPU's grouped path and no stand-in. Raises `UserError` for
    what the strategies refuse, and for a strategy that cannot be planned.
    """
    from mmscale.config_file import dump_config

    kind = STRATEGIES[config.parallel.strategy]
    assert kind.stand_in(config, world).config is config, "run what stands in for it"
    order = {
        "world": world,
        "sequences": sequences,
        "passes": passes,
        "fused": fused,
        "config": dump_config(config),
    }
    done = subprocess.run(
        [sys.executable, "-m", "mmscale.capacity.dry_run"],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 2:
        raise UserError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise RuntimeError(f"the dry run failed:\n{done.stderr[-4000:]}")
    return DryStep(**json.loads(done.stdout.splitlines()[-1]))


def embeds_first(config: Config) -> bool:
    """Whether a step embeds all of its micro-batches once more before their passes
    (`mmscale.train.contrast`).
    """
    tasks = [task for data_set in config.data.sets.values() for task in data_set.tasks]
    return config.data.contrast_sequences > 1 and any(
        task.objective == "contrastive" for task in tasks
    )


def measure_step(
    strategy: Any,
    batch: Any,
    passes: int = 1,
    *,
    embed: bool = False,
    offload: bool = False,
    attacks: int = 0,
    attack: Callable[[], Any] | None = None,
) -> DryStep:
    """Track a step of ``passes`` micro-batches like ``batch``, of real or fake tensors.

    At most two passes are run: those between the first and the last hold the same, gradients that
    wait for the last. With ``embed``, the embedding pass of a micro-batch is counted too. With
    ``offload`` (of `FsdpStrategy`), sharded weights, gradients and moments lie on the host, which
    updates them there: no memory of the device. ``attack`` is run once, and counts ``attacks``
    times a micro-batch.
    """
    import torch

    from mmscale.capacity.memory_tracker import HOST, Tracker

    held, tracker = strategy.state_tensors(), Tracker()
    kinds = {kind: HOST if offload else kind for kind in ("weights", "optimiser", "gradients")}
    with tracker:
        weights = [tensor for name, tensor in held.items() if name.startswith("model.")]
        tracker.count(kinds["weights"], weights)
        moments = [tensor for name, tensor in held.items() if not name.startswith("model.")]
        tracker.count(kinds["optimiser"], moments)
        tracker.count("batch", batch.tensors().values())
        # Those that a strategy never lets go.
        tracker.count(
            kinds["gradients"], [p.grad for p in strategy.model.parameters() if p.grad is not None]
        )
        if offload:
            # A unit's shard is copied to the device before it is gathered; here both are one.
            copied = torch.empty(_largest_shard(strategy.model), dtype=torch.uint8)
            tracker.count("buffers", [copied])
            for parameter in strategy.model.parameters():
                if parameter.requires_grad:
                    # FSDP calls it once the sharded gradient has gone to the host.
                    parameter.register_post_accumulate_grad_hook(
                        lambda p: tracker.count(HOST, [p.grad])
                    )
        if attack is not None:
            attack()
            tracker.flops *= attacks
            tracker.sent = Counter({name: size * attacks for name, size in tracker.sent.items()})
        if embed:
            strategy.embeddings(batch)
        if passes > 1:
            once = tracker.flops, tracker.sent.copy()
            strategy.forward_backward(batch, last=False)
            # What outlives a pass is gradients, some strategies keep them where no parameter shows
            # them.
            tracker.rename("activations", "gradients")
            tracker.flops, tracker.sent = once
        strategy.forward_backward(batch, last=True)
        tracker.count(
            kinds["gradients"], [p.grad for p in strategy.model.parameters() if p.grad is not None]
        )
        host = int(tracker.live[HOST])
        if offload:
            tracker.fresh = HOST
        strategy.update(0, 1e-4, lambda norm: torch.zeros((), device=norm.device))
    memory = {kind: int(size) for kind, size in tracker.at_peak.items() if size and kind != HOST}
    return DryStep(
        {**memory, "total": int(tracker.peak)}, float(tracker.flops), dict(tracker.sent), host
    )


def _largest_shard(model: Any) -> int:
    """Bytes of this rank's share of the largest unit that FSDP gathers at once."""
    from torch.distributed.fsdp import FSDPModule

    units: list[Any] = [module for module in model.modules() if isinstance(module, FSDPModule)]
    parts = [list(unit.parameters()) for unit in units if unit is not model]
    inner = {id(parameter) for part in parts for parameter in part}
    parts.append([parameter for parameter in model.parameters() if id(parameter) not in inner])
    return max(sum(parameter.to_local().nbytes for parameter in part) for part in parts)


def main() -> None:
    """Read an order from stdin, print the answer as JSON."""
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    order = json.load(sys.stdin)
    torch.set_num_threads(1)
    # Fake tensors that refer to each other in a circle would look alive until Python happens to
    # collect them.
    gc.freeze()
    gc.set_threshold(100, 1, 1)
    dist.init_process_group("fake", rank=0, world_size=order["world"], store=FakeStore())
    try:
        config = _read_config(order["config"])
        step = _fake_step(
            config, order["world"], order["sequences"], order["passes"], order["fused"]
        )
    except UserError as error:
        write_line(error)
        raise SystemExit(2) from None
    print(json.dumps(step.__dict__))


def _read_config(text: str) -> Config:
    from mmscale.config_file import load_config

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(str(path), [])


def _fake_step(config: Config, world: int, sequences: int, passes: int, fused: bool) -> DryStep:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from mmscale.capacity.dry_batch import dry_batch
    from mmscale.capacity.dry_build import DryBuilder, dry_operators
    from mmscale.parallel.ranks import Ranks
    from mmscale.parallel.strategy import build_strategy

    ranks = Ranks(
        rank=0,
        world=world,
        local_rank=0,
        local_world=1,
        device=torch.device("cpu"),
        parts=config.parallel.tensor * config.parallel.context,
    )
    config.parallel.compile = False
    batch, fake = dry_batch(config, sequences), FakeTensorMode(allow_non_fake_inputs=True)
    builder = DryBuilder(dry_operators(fake, batch, fused))
    with fake:
        strategy = build_strategy(config, ranks, builder)
        builder.check(strategy)
        strategy.model.train()
        offload = config.parallel.offload == "cpu"
        batch, adversarial = batch.with_tensors(fake.from_tensor), config.train.adversarial
        embed = embeds_first(config)
        if not adversarial.on:
            return measure_step(strategy, batch, passes, embed=embed, offload=offload)
        # As an attack leaves them.
        batch = replace(batch, image_N3HW=batch.image_N3HW.float())
        attack = partial(_attack, config, strategy, batch)
        return measure_step(
            strategy,
            batch,
            passes,
            embed=embed,
            offload=offload,
            attacks=adversarial.steps,
            attack=attack,
        )


def _attack(config: Config, strategy: Any, batch: Any) -> None:
    """One step of the search for the worst batch nearby (`mmscale.train.adversarial`)."""
    from mmscale.model.attack import never_empty
    from mmscale.train.adversarial import input_gradients

    whole = never_empty(batch, config.media)
    changed = replace(
        whole,
        image_N3HW=whole.image_N3HW.clone().requires_grad_(),
        audio_NFM=whole.audio_NFM.clone().requires_grad_(),
    )
    input_gradients(strategy, changed, config.data.contrast_sequences == 1)


if __name__ == "__main__":
    main()
