"""A plan as lines for people, and as one JSON object."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mmscale.capacity.dry_batch import ModalityShares
from mmscale.capacity.estimate import Estimate
from mmscale.capacity.search import Candidate, Planner
from mmscale.capacity.storage import Storage
from mmscale.capacity.storage_report import assumed_of_storage, describe_storage
from mmscale.model.count import count_parameters
from mmscale.registry import STRATEGIES


def facts_of(
    planner: Planner,
    way: Candidate,
    estimate: Estimate,
    tokens: float,
    storage: Storage | None = None,
) -> dict[str, Any]:
    """Everything a plan says; of ``storage``, if it is given, too."""
    config = planner.config
    seconds = tokens / estimate.tokens_per_s
    said: dict[str, Any] = {}
    if storage is not None:
        needs = storage.needs(
            world=planner.world, per_node=planner.per_node,
            parts=way.tensor * config.parallel.context,
            steps=tokens / (config.data.seq_len * config.data.sequences), step_s=estimate.step_s,
        )  # fmt: skip
        seconds *= needs.step_s / estimate.step_s
        said = {"storage": asdict(needs), "storage_terms": asdict(storage.terms)}
    return {
        "gpus": planner.world,
        "gpu": planner.gpu.name,
        "parameters": count_parameters(config.model, config.media),
        "settings": way.lines(config),
        **asdict(estimate),
        "tokens": tokens,
        "days": seconds / 86_400,
        "gpu_hours": seconds / 3_600 * planner.world,
        "assumptions": asdict(planner.assume) | {"mix": asdict(ModalityShares.of(config))},
        **said,
    }


def describe(planner: Planner, facts: dict[str, Any]) -> str:
    """The plan of one way."""
    gpu, assume, mix = planner.gpu, facts["assumptions"], facts["assumptions"]["mix"]
    lines = [
        f"{facts['gpus']} x {gpu.name}, {planner.per_node} per machine: "
        f"{' '.join(facts['settings'])}",
        "",
    ]
    lines += [f"  {part:<16}{count:>18,} parameters" for part, count in facts["parameters"].items()]
    lines += ["", "peak memory per rank"]
    kinds = {kind: size for kind, size in facts["memory"].items() if kind != "total"}
    lines += [
        f"  {kind:<16}{size / 1e9:>10.2f} GB"
        for kind, size in sorted(kinds.items(), key=lambda pair: -pair[1])
    ]
    spare = gpu.memory - facts["needed"]
    verdict = (
        f"fits, {spare / 1e9:.1f} GB to spare"
        if facts["fits"]
        else f"does not fit, by {-spare / 1e9:.1f} GB"
    )
    lines += [
        f"  {'tensors in all':<16}{facts['memory']['total'] / 1e9:>10.2f} GB",
        f"  {'with the rest':<16}{facts['needed'] / 1e9:>10.2f} GB of {gpu.memory / 1e9:.0f} (5 % "
        "lost by the allocator, 1.5 GB of CUDA and NCCL)",
        f"  {verdict}",
        "",
        "a step",
        f"  {'arithmetic':<16}{facts['model_flops']:>10.3g} FLOPs of the model; "
        f"{facts['computed_flops']:.3g} computed per rank",
        f"  {'compute':<16}{facts['compute_s']:>10.3f} s",
        f"  {'communication':<16}{facts['exchange_s']:>10.3f} s, of which {facts['exposed_s']:.3f} "
        "s are not hidden",
        f"  {'update':<16}{facts['update_s']:>10.3f} s",
        f"  {'data':<16}{facts['data_s']:>10.3f} s of loading, of which "
        f"{facts['data_exposed_s']:.3f} s are not hidden",
        f"  {'in all':<16}{facts['step_s']:>10.3f} s, {facts['tokens_per_s']:,.0f} tokens/s, "
        f"{facts['mfu']:.1%} of the rated FLOP/s",
        "",
    ]
    storage = facts.get("storage")
    if storage is not None:
        lines += describe_storage(storage, facts["storage_terms"], facts["step_s"])
    lines += [
        f"{facts['tokens']:.3g} tokens: {facts['days']:,.1f} days, {facts['gpu_hours']:,.0f} GPU "
        "hours",
        "",
        "assumed",
        f"  segments with pictures {mix['image']:.0%}, with clips {mix['audio']:.0%} (by the sets' "
        "weights); all positions used",
        f"  products reach {assume['efficiency']:.0%} of {gpu.bf16 / 1e12:,.0f} TFLOP/s; "
        f"communication hides behind {assume['overlap']:.0%} of compute",
        f"  {gpu.link / 1e9:,.0f} GB/s within a machine, {gpu.network / 1e9:,.1f} GB/s per GPU "
        f"between machines, {gpu.memory_rate / 1e12:.2f} TB/s of memory",
        f"  a loader worker decodes {assume['pictures']:,.0f} pictures or {assume['clips']:,.0f} "
        f"clips per second; {planner.config.data.workers} workers per rank",
    ]
    if storage is not None:
        lines += assumed_of_storage(storage, bool(planner.config.data.schedule))
    if planner.config.parallel.float8:
        lines.append("  8-bit products take the time of bf16 ones")
    if facts["host"]:
        lines.append(
            f"  {facts['host'] / 1e9:,.2f} GB per rank are offloaded to its host; sending them and "
            "updating them there take time that is not counted"
        )
    note = STRATEGIES[facts["settings"][0].partition("=")[2]].plan_note
    if note:
        lines.append(f"  {note}")
    return "\n".join(lines)
