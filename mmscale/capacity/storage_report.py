"""What a plan says of storage, as lines for people."""

from __future__ import annotations

from typing import Any

from mmscale.capacity.stored_set import BYTES_PER_TOKEN


def describe_storage(storage: dict[str, Any], terms: dict[str, float], step_s: float) -> list[str]:
    """Lines of `StorageNeeds` and `StorageTerms`, beside a step of ``step_s`` seconds."""
    nodes = storage["nodes"]
    lines = [f"storage, {nodes} machine{'s' if nodes > 1 else ''}"]
    lines += [_set_line(name, needs) for name, needs in storage["sets"].items()]
    lines += [f"  {name:<16}unknown: {reason}" for name, reason in storage["unknown"].items()]
    if not storage["sets"]:
        return [*lines, ""]
    least = "at least " if storage["unknown"] else ""
    rate = storage["node_bytes_per_s"]
    offered = f" of {terms['gbps']:g} that there are" if terms["gbps"] else ""
    lines.append(
        f"  {'a machine reads':<16}{least}{_size(storage['node_bytes_per_step'])} a step: "
        f"{rate / 1e9:.3g} GB/s, {8 * rate / 1e9:.3g} Gbit/s{offered}"
    )
    if storage["step_s"] > step_s:
        lines.append(
            f"  {'':<16}loading is what a step waits for: it takes {storage['step_s']:.3f} s "
            f"instead of {step_s:.3f}"
        )
    if storage["fetched_bytes"]:
        lines += _remote_lines(storage, terms, least)
    return [*lines, ""]


def assumed_of_storage(storage: dict[str, Any], scheduled: bool) -> list[str]:
    """What `describe_storage` rests on."""
    lines = []
    if not all(needs["texts_counted"] for needs in storage["sets"].values()):
        lines.append(
            f"  {BYTES_PER_TOKEN} bytes of text are a token, where a set's texts have not been "
            "counted with the run's tokenizer"
        )
    if storage["sets"] and scheduled:
        lines.append("  what is read of each set: by the weights of step 0, not by data.schedule")
    return lines


def _remote_lines(storage: dict[str, Any], terms: dict[str, float], least: str) -> list[str]:
    window, cache = storage["window_bytes"], storage["cache_bytes"]
    kept = "every remote set is kept" if storage["keeps_all"] else "what fits of the sets is kept"
    lines = [
        f"  {'its disk holds':<16}{least}{_size(window)} at a time; within "
        f"data.cache.max_gb={cache / 1e9:g} {kept}"
    ]
    if window > cache:
        lines.append(
            f"  {'':<16}data.cache.max_gb is too small for that: raise it, or lower data.lanes, "
            "data.window_groups or data.block"
        )
    paid = f", price {storage['price']:,.2f}" if any(_prices(terms)) else ""
    lines.append(
        f"  {'the run fetches':<16}{least}{_size(storage['fetched_bytes'])} in "
        f"{storage['requests']:,.0f} requests{paid}"
    )
    return lines


def _prices(terms: dict[str, float]) -> tuple[float, float]:
    return terms["egress_per_tb"], terms["requests_per_million"]


def _set_line(name: str, needs: dict[str, Any]) -> str:
    requests = needs["requests_per_epoch"]
    asked = f" in {requests:,.0f} requests" if requests else ""
    return (
        f"  {name:<16}{needs['samples']:,} samples of {_size(needs['bytes_per_sample'])}; "
        f"{_size(needs['bytes_per_step'])} a step, {_size(needs['bytes_per_epoch'])}{asked} an "
        f"epoch; {needs['epochs']:.3g} epochs"
    )


def _size(count: float) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} bytes"
