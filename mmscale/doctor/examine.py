"""All checks, on all ranks, before there is a process group. All ranks end with one report."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mmscale.config import Config
from mmscale.doctor import bandwidth, disk_space, gpus, network, shards, versions
from mmscale.doctor.check import FAILED, OK, HealthCheck, RankPlace, worst
from mmscale.doctor.exchange import Exchange
from mmscale.errors import UserError
from mmscale.messages import report
from mmscale.parallel.ranks import read_environment


@dataclass(frozen=True)
class HealthReport:
    """The verdicts. ``machines``: their names, in the order of their ranks."""

    ranks: int
    machines: list[str]
    checks: list[HealthCheck]
    seconds: float

    @property
    def verdict(self) -> str:
        """The gravest of all checks."""
        return worst(check.verdict for check in self.checks)

    def table(self) -> str:
        """Lines for people."""
        shown = ", ".join(self.machines[:6]) + (" …" if len(self.machines) > 6 else "")
        lines = [f"ranks {self.ranks}, machines {len(self.machines)}: {shown}", ""]
        lines += [f"  {check.name:<12}{check.verdict:<9}{check.text}" for check in self.checks]
        sick = dict.fromkeys(
            name for check in self.checks if check.verdict == FAILED for name in check.machines
        )
        if sick:
            lines += ["", f"look at: {', '.join(sick)}"]
        return "\n".join(lines)

    def facts(self) -> dict[str, Any]:
        """One object for machines."""
        return {"verdict": self.verdict, **asdict(self)}


def preflight(config: Config, store: dist.Store) -> None:
    """`examine` before a run. The first rank reports what is not as it should be.

    Raises:
        UserError: a check failed, on the first rank. The others leave with exit status 2.
    """
    health = examine(config, store)
    if read_environment()[0] != 0:
        if health.verdict == FAILED:
            raise SystemExit(2)
        return
    report(f"preflight: {health.verdict}, {health.seconds:.1f} s")
    failed = [check for check in health.checks if check.verdict == FAILED]
    for check in health.checks:
        if check.verdict != OK and check not in failed[:1]:
            report(f"{check.verdict}: {check.name}: {check.text}")
    if failed:
        raise UserError(
            f"preflight: {failed[0].name}: {failed[0].text}; `mmscale doctor` reports all "
            "checks (DOCTOR=0 leaves this out)"
        )


def examine(
    config: Config | None,
    store: dist.Store,
    *,
    clock: network.Clock = time.time,
    patience_s: float = 60.0,
) -> HealthReport:
    """Check this rank's machine, report to the others, and assess together. Called on every rank.

    Args:
        config: the run whose data and disk space are checked; None: only what any run needs.
        store: what `mmscale.parallel.ranks.meet_ranks` gave.
        clock: this machine's, seconds since 1970.
        patience_s: how long to wait for another rank before it counts as the sick one.

    Raises:
        UserError: the first rank is gone.
    """
    began = time.perf_counter()
    rank, world, local_rank, _ = read_environment()
    exchange = Exchange(store, rank, world, patience_s)
    try:
        examination = _Examination(exchange, config, clock, local_rank)
        checks = examination.run()
        if rank == 0:
            sent = [asdict(check) for check in checks]
            exchange.announce("report", [examination.machines, sent, time.perf_counter() - began])
        machines, received, seconds = exchange.listen("report")
        exchange.report("bye", 0)
        if rank == 0:  # whose process may keep the store
            exchange.gather("bye", examination.answered)
    except RuntimeError as error:
        raise UserError(
            f"rank 0 does not answer ({str(error).splitlines()[0]}); its own output shows why"
        ) from None
    return HealthReport(
        world,
        machines,
        [HealthCheck(**check | {"machines": tuple(check["machines"])}) for check in received],
        seconds,
    )


class _Examination:
    """One rank's part. On the first rank, `run` gives the checks; ``machines`` and ``answered`` are
    known then.
    """

    def __init__(
        self,
        exchange: Exchange,
        config: Config | None,
        clock: network.Clock,
        local_rank: int,
    ) -> None:
        self._exchange, self._config = exchange, config
        self._clock, self._local_rank = clock, local_rank
        self._places: list[RankPlace] = []
        self._mine: list[int] = []  # ranks of this machine; the first of them reports for it
        self.machines: list[str] = []
        self.answered: list[int] = []

    def run(self) -> list[HealthCheck]:
        exchange, address = self._exchange, network.own_address()
        with network.Listener(address, self._clock) as listener:
            exchange.report("here", [socket.gethostname(), _boot()])
            if exchange.rank == 0:
                exchange.announce(
                    "places",
                    _name_places(exchange.gather("here", range(exchange.world)), exchange.world),
                )
            self._places = [
                RankPlace(number, name) for number, name in enumerate(exchange.listen("places"))
            ]
            self.machines = list(
                dict.fromkeys(place.machine for place in self._places if place.machine)
            )
            mine = self._places[exchange.rank].machine
            self._mine = [place.rank for place in self._places if place.machine == mine]
            exchange.report("collected", self._collect() | {"at": [address, listener.port]})
            collected, checks = self._gather_collected()
            reached = self._reach(collected)
            if exchange.rank == 0:
                checks += self._assess(collected, reached)
                is_sound = all(check.verdict != FAILED for check in checks)
                exchange.announce("measure_rates", is_sound and exchange.world > 1)
            to_measure = exchange.listen("measure_rates")  # until then others may ask the listener
        if to_measure:
            checks += self._measure(collected)
        return checks

    @property
    def _reports_for_machine(self) -> bool:
        return self._exchange.rank == self._mine[0]

    def _collect(self) -> dict[str, Any]:
        """Everything that needs no other rank. GPUs and disk space are checked once per machine."""
        collectors: dict[str, Callable[[], Any]] = {}
        if self._reports_for_machine:
            collectors["gpus"] = gpus.collect
            collectors["disk space"] = lambda: disk_space.collect(self._config, len(self._mine))
        if self._config is not None:
            config = self._config
            collectors["shards"] = lambda: shards.collect(config)
        facts = {}
        for name, collect in collectors.items():
            self._exchange.report("at", name)  # if it hangs, the first rank knows where
            facts[name] = collect()
        driver = gpus.driver_of(facts["gpus"]) if "gpus" in facts else ""
        return facts | {"versions": versions.collect(driver)}

    def _gather_collected(self) -> tuple[dict[RankPlace, dict[str, Any]], list[HealthCheck]]:
        """On the first rank: what all ranks collected, and which of them are missing."""
        exchange = self._exchange
        if exchange.rank != 0:
            return {}, []
        came = [place for place in self._places if place.machine]
        facts = exchange.gather("collected", [place.rank for place in came])
        faults = [f"rank {place.rank} did not come" for place in self._places if not place.machine]
        silent = [place for place in came if place.rank not in facts]
        faults += [
            f"rank {place.rank} on {place.machine} hangs at: "
            f"{exchange.now('at', place.rank) or 'its start'}"
            for place in silent
        ]
        self.answered = list(facts)
        if faults:
            more = f", and {len(faults) - 4} more" if len(faults) > 4 else ""
            sick = tuple(dict.fromkeys(place.machine for place in silent))
            check = HealthCheck("ranks", FAILED, "; ".join(faults[:4]) + more, sick)
        else:
            check = HealthCheck("ranks", OK, f"all {len(facts)} have come")
        return {place: facts[place.rank] for place in came if place.rank in facts}, [check]

    def _reach(self, collected: dict[RankPlace, dict[str, Any]]) -> dict[RankPlace, dict[str, Any]]:
        """On the first rank: what every machine's first rank reports of the others."""
        exchange = self._exchange
        if exchange.rank == 0:
            exchange.announce(
                "peers",
                {place.machine: collected[place]["at"] for place in _first_ranks(collected)},
            )
        peers = exchange.listen("peers")
        if self._reports_for_machine:
            exchange.report(
                "reached",
                network.reach({name: tuple(at) for name, at in peers.items()}, self._clock),
            )
        if exchange.rank != 0:
            return {}
        firsts = _first_ranks(collected)
        reached = exchange.gather("reached", [place.rank for place in firsts])
        return {place: reached[place.rank] for place in firsts if place.rank in reached}

    def _assess(
        self, collected: dict[RankPlace, dict[str, Any]], reached: dict[RankPlace, dict[str, Any]]
    ) -> list[HealthCheck]:
        firsts = _first_ranks(collected)
        checks = [
            versions.assess({place: facts["versions"] for place, facts in collected.items()}),
            gpus.assess({place: collected[place]["gpus"] for place in firsts}),
            network.assess_network(reached),
            network.assess_clocks(
                {place: peers[self.machines[0]] for place, peers in reached.items()}
            ),
            disk_space.assess({place: collected[place]["disk space"] for place in firsts}),
        ]
        if self._config is not None:
            checks.append(
                shards.assess({place: facts["shards"] for place, facts in collected.items()})
            )
        return checks

    def _measure(self, collected: dict[RankPlace, dict[str, Any]]) -> list[HealthCheck]:
        """All-reduces in a process group of their own; called on every rank."""
        exchange = self._exchange
        try:
            rates, gpu = self._measured()
            exchange.report("rates", {"rates": rates, "gpu": gpu})
        except RuntimeError as error:
            exchange.report("rates", {"fault": str(error).splitlines()[0]})
        if exchange.rank != 0:
            return []
        replies = exchange.gather("rates", [place.rank for place in self._places])
        for place in self._places:
            fault = replies[place.rank].get("fault") if place.rank in replies else "hangs"
            if fault:
                text = f"{place.machine}: rank {place.rank}: {fault}"
                return [HealthCheck("all-reduce", FAILED, text, (place.machine,))]
        by_machine = {
            place.machine: replies[place.rank]["rates"] for place in _first_ranks(collected)
        }
        per_machine = len(self._places) // len(by_machine)
        return [bandwidth.assess(by_machine, replies[0]["gpu"], per_machine)]

    def _measured(self) -> tuple[dict[str, float], str]:
        exchange = self._exchange
        with_gpu = torch.cuda.is_available()
        device = torch.device("cuda", self._local_rank) if with_gpu else torch.device("cpu")
        if with_gpu:
            torch.cuda.set_device(device)
        gpu = torch.cuda.get_device_name(device) if with_gpu else ""
        dist.init_process_group(
            "nccl" if with_gpu else "gloo", store=exchange.below("group"), rank=exchange.rank,
            world_size=exchange.world, timeout=exchange.patience,
        )  # fmt: skip
        try:
            machines = [
                [place.rank for place in self._places if place.machine == name]
                for name in self.machines
            ]
            rates = bandwidth.measure_rates(machines, device)
            # All decide alike, by the slowest rank's number.
            slowest = torch.tensor([rates["all"]], device=device)
            dist.all_reduce(slowest, dist.ReduceOp.MIN)
            if bandwidth.is_slow(float(slowest), gpu, len(machines), len(self._mine)):
                rates["pairs"] = bandwidth.measure_pairs(machines, device)
            return rates, gpu
        finally:
            dist.destroy_process_group()


def _boot() -> str:
    """What no two machines share, and containers of one machine do; empty where it is hidden."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _name_places(here: dict[int, list[str]], world: int) -> list[str]:
    """Name of every rank's machine, its host name, empty for ranks that did not come.

    ``here``: [host name, boot] by rank. Machines of one host name are numbered.
    """
    boots: dict[str, list[str]] = {}
    for host, boot in (here[rank] for rank in sorted(here)):
        if boot not in boots.setdefault(host, []):
            boots[host].append(boot)
    names = []
    for rank in range(world):
        host, boot = here.get(rank, ["", ""])
        number = f"#{boots[host].index(boot)}" if len(boots.get(host, [])) > 1 else ""
        names.append(host + number)
    return names


def _first_ranks(collected: dict[RankPlace, dict[str, Any]]) -> list[RankPlace]:
    """The first rank of every machine, which checked GPUs and disk space for all; none where it is
    silent.
    """
    return sorted(place for place, facts in collected.items() if "gpus" in facts)
