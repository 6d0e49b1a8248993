"""All checks, on all ranks, before there is a process group; ends in the same report on each of
them.
"""

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
    """What was found. ``machines``: their names, in the order of their ranks."""

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
    """`examine` before a run; the first rank tells what is not as it should be.

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
            f"preflight: {failed[0].name}: {failed[0].text}; `mmscale doctor` tells all (DOCTOR=0 "
            "leaves this out)"
        )


def examine(
    config: Config | None,
    store: dist.Store,
    *,
    clock: network.Clock = time.time,
    patience_s: float = 60.0,
) -> HealthReport:
    """Look at this rank's machine, tell the others, and judge together. Called on every rank.

    Args:
        config: the run whose data and room are looked at; None: only what any run needs.
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
            told = [asdict(check) for check in checks]
            exchange.announce("report", [examination.machines, told, time.perf_counter() - began])
        machines, told, seconds = exchange.listen("report")
        exchange.tell("bye", 0)
        if rank == 0:  # whose process may keep the store
            exchange.hear("bye", examination.answered)
    except RuntimeError as error:
        raise UserError(
            f"rank 0 does not answer ({str(error).splitlines()[0]}); its own output tells why"
        ) from None
    return HealthReport(
        world,
        machines,
        [HealthCheck(**one | {"machines": tuple(one["machines"])}) for one in told],
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
        self._exchange, self._config, self._clock, self._local_rank = (
            exchange,
            config,
            clock,
            local_rank,
        )
        self._places: list[RankPlace] = []
        self._mine: list[int] = []  # ranks of this machine; the first of them speaks for it
        self.machines: list[str] = []
        self.answered: list[int] = []

    def run(self) -> list[HealthCheck]:
        exchange, address = self._exchange, network.own_address()
        with network.Listener(address, self._clock) as listener:
            exchange.tell("here", [socket.gethostname(), _boot()])
            if exchange.rank == 0:
                exchange.announce(
                    "places",
                    _name_places(exchange.hear("here", range(exchange.world)), exchange.world),
                )
            self._places = [
                RankPlace(number, name) for number, name in enumerate(exchange.listen("places"))
            ]
            self.machines = list(
                dict.fromkeys(place.machine for place in self._places if place.machine)
            )
            mine = self._places[exchange.rank].machine
            self._mine = [place.rank for place in self._places if place.machine == mine]
            exchange.tell("found", self._look() | {"at": [address, listener.port]})
            found, checks = self._hear_found()
            reached = self._reach(found)
            if exchange.rank == 0:
                checks += self._judge(found, reached)
                is_sound = all(check.verdict != FAILED for check in checks)
                exchange.announce("measure_rates", is_sound and exchange.world > 1)
            to_measure = exchange.listen("measure_rates")  # until then others may ask the listener
        if to_measure:
            checks += self._measure(found)
        return checks

    @property
    def _speaks(self) -> bool:
        return self._exchange.rank == self._mine[0]

    def _look(self) -> dict[str, Any]:
        """Everything that needs no other rank. GPUs and rooms are looked at once a machine."""
        looks: dict[str, Callable[[], Any]] = {}
        if self._speaks:
            looks["gpus"] = gpus.look
            looks["room"] = lambda: disk_space.look(self._config, len(self._mine))
        if self._config is not None:
            config = self._config
            looks["shards"] = lambda: shards.look(config)
        found = {}
        for name, look in looks.items():
            self._exchange.tell("at", name)  # if it hangs, the first rank knows where
            found[name] = look()
        driver = gpus.driver_of(found["gpus"]) if "gpus" in found else ""
        return found | {"versions": versions.look(driver)}

    def _hear_found(self) -> tuple[dict[RankPlace, dict[str, Any]], list[HealthCheck]]:
        """On the first rank: what all found, and who is missing."""
        exchange = self._exchange
        if exchange.rank != 0:
            return {}, []
        came = [place for place in self._places if place.machine]
        told = exchange.hear("found", [place.rank for place in came])
        faults = [f"rank {place.rank} did not come" for place in self._places if not place.machine]
        silent = [place for place in came if place.rank not in told]
        faults += [
            f"rank {place.rank} on {place.machine} hangs at: "
            f"{exchange.now('at', place.rank) or 'its start'}"
            for place in silent
        ]
        self.answered = list(told)
        if faults:
            more = f", and {len(faults) - 4} more" if len(faults) > 4 else ""
            sick = tuple(dict.fromkeys(place.machine for place in silent))
            check = HealthCheck("ranks", FAILED, "; ".join(faults[:4]) + more, sick)
        else:
            check = HealthCheck("ranks", OK, f"all {len(told)} have come")
        return {place: told[place.rank] for place in came if place.rank in told}, [check]

    def _reach(self, found: dict[RankPlace, dict[str, Any]]) -> dict[RankPlace, dict[str, Any]]:
        """On the first rank: what every machine's first rank says of the others."""
        exchange = self._exchange
        if exchange.rank == 0:
            exchange.announce(
                "peers", {place.machine: found[place]["at"] for place in _speakers(found)}
            )
        peers = exchange.listen("peers")
        if self._speaks:
            exchange.tell(
                "reached",
                network.reach({name: tuple(at) for name, at in peers.items()}, self._clock),
            )
        if exchange.rank != 0:
            return {}
        firsts = _speakers(found)
        told = exchange.hear("reached", [place.rank for place in firsts])
        return {place: told[place.rank] for place in firsts if place.rank in told}

    def _judge(
        self, found: dict[RankPlace, dict[str, Any]], reached: dict[RankPlace, dict[str, Any]]
    ) -> list[HealthCheck]:
        firsts = _speakers(found)
        checks = [
            versions.judge({place: one["versions"] for place, one in found.items()}),
            gpus.judge({place: found[place]["gpus"] for place in firsts}),
            network.judge_network(reached),
            network.judge_clocks(
                {place: told[self.machines[0]] for place, told in reached.items()}
            ),
            disk_space.judge({place: found[place]["room"] for place in firsts}),
        ]
        if self._config is not None:
            checks.append(shards.judge({place: one["shards"] for place, one in found.items()}))
        return checks

    def _measure(self, found: dict[RankPlace, dict[str, Any]]) -> list[HealthCheck]:
        """All-reduces in a process group of their own; called on every rank."""
        exchange = self._exchange
        try:
            rates, gpu = self._measured()
            exchange.tell("rates", {"rates": rates, "gpu": gpu})
        except RuntimeError as error:
            exchange.tell("rates", {"fault": str(error).splitlines()[0]})
        if exchange.rank != 0:
            return []
        told = exchange.hear("rates", [place.rank for place in self._places])
        for place in self._places:
            fault = told[place.rank].get("fault") if place.rank in told else "hangs"
            if fault:
                text = f"{place.machine}: rank {place.rank}: {fault}"
                return [HealthCheck("all-reduce", FAILED, text, (place.machine,))]
        by_machine = {place.machine: told[place.rank]["rates"] for place in _speakers(found)}
        return [bandwidth.judge(by_machine, told[0]["gpu"], len(self._places) // len(by_machine))]

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
    """What no two machines share, and containers of one machine do; empty where the kernel does not
    tell.
    """
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


def _speakers(found: dict[RankPlace, dict[str, Any]]) -> list[RankPlace]:
    """The first rank of every machine, which looked at GPUs and rooms for all; none where it is
    silent.
    """
    return sorted(place for place, one in found.items() if "gpus" in one)
