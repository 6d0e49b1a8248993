"""Does every machine reach every other, and do their clocks agree?

Each machine listens at the address that collectives would use, and sends its time to whoever
connects. The difference of two clocks follows from the shortest of a few round trips, with half of
it as the error (Cristian, "Probabilistic clock synchronization", 1989).
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mmscale.doctor.check import FAILED, OK, WARNING, HealthCheck, RankPlace, complain
from mmscale.errors import UserError

_CONNECT_S = 5.0
_ROUNDS = 8
_AT_ONCE = 32
# Requests signed for S3 are refused at 15 minutes, Slurm's credentials at 5, Kerberos' tickets at
# 5; logs of a second apart cannot be read together.
_WARN_S, _FAIL_S = 1.0, 60.0

Clock = Callable[[], float]  # seconds since 1970


class Listener:
    """Answers every byte with this machine's time; a context manager."""

    def __init__(self, address: str, clock: Clock) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._server = socket.create_server((address, 0), family=family, backlog=1024)
        self._clock = clock
        self.port: int = self._server.getsockname()[1]

    def __enter__(self) -> Listener:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *unused: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # ends a waiting accept, which closing does not
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(_CONNECT_S)
            try:
                while connection.recv(1):
                    connection.sendall(struct.pack("!d", self._clock()))
            except OSError:
                return


def own_address() -> str:
    """The address at which Gloo lets others find this machine: of its interface, or of its host
    name.

    Raises:
        UserError: there is no such interface.
    """
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if interface:
        try:
            return interface_address(interface)
        except OSError as error:
            raise UserError(
                f"GLOO_SOCKET_IFNAME={interface}: no IPv4 address of it here ({error.strerror}); "
                "NETWORK_INTERFACE and GLOO_SOCKET_IFNAME name an interface of `ip address`"
            ) from None
    try:
        family, _, _, _, address = socket.getaddrinfo(
            socket.gethostname(), None, type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family) as probe:
            probe.bind((address[0], 0))
    except OSError:  # as Gloo does
        return "127.0.0.1"
    return str(address[0])


def interface_address(interface: str) -> str:
    """IPv4 address of a network interface. Raises OSError if there is none."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(probe, 0x8915, request)[20:24])  # SIOCGIFADDR


def reach(peers: Mapping[str, tuple[str, int]], clock: Clock) -> dict[str, dict[str, Any]]:
    """By name of a machine, whose listener has the address and port: ``fault``, or how far its
    clock is ``ahead`` of this machine's, with the ``error``; seconds."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(
            zip(
                peers,
                pool.map(lambda at: _ask_time(at[0], at[1], clock), peers.values()),
                strict=True,
            )
        )


def assess_network(reached: Mapping[RankPlace, Mapping[str, Mapping[str, Any]]]) -> HealthCheck:
    """``reached``: by one rank of each machine, what `reach` gave. Named are those that most of the
    others miss.
    """
    if len(reached) == 1:
        return HealthCheck("network", OK, "one machine")
    broken = [
        (place.machine, name, peer["fault"])
        for place, peers in reached.items()
        for name, peer in peers.items()
        if peer["fault"]
    ]
    if not broken:
        return HealthCheck("network", OK, f"{len(reached)} machines, each reaches every other")
    missed: dict[str, set[tuple[str, str]]] = {}
    for machine, peer, fault in broken:
        # An address that means "this machine" on every machine is the fault of the one that gives
        # it.
        for blamed in (peer,) if fault.startswith("127.") else (machine, peer):
            missed.setdefault(blamed, set()).add((machine, peer))
    most = max(len(pairs) for pairs in missed.values())
    sick = tuple(name for name, pairs in missed.items() if len(pairs) == most)
    lines = [f"{a} does not reach {b}: {fault}" for a, b, fault in broken]
    more = f", and {len(lines) - 4} more" if len(lines) > 4 else ""
    remedy = "; NETWORK_INTERFACE names the interface that Gloo and NCCL use"
    return HealthCheck("network", FAILED, "; ".join(lines[:4]) + more + remedy, sick)


def assess_clocks(reached: Mapping[RankPlace, Mapping[str, Any]]) -> HealthCheck:
    """``reached``: by one rank of each machine, how far the first machine's clock is ``ahead``."""
    offsets = {place: -first["ahead"] for place, first in reached.items() if not first["fault"]}
    if len(offsets) < 2:
        return HealthCheck("clocks", OK, "one machine")
    norm = statistics.median_low(offsets.values()) if len(offsets) > 2 else offsets[min(offsets)]
    error = max(reached[place]["error"] for place in offsets)
    faults = {}
    for place, offset in offsets.items():
        apart = offset - norm
        if abs(apart) > _WARN_S + error:
            way = "ahead" if apart > 0 else "behind"
            line = f"{abs(apart):.1f} s {way}, known to {error * 1e3:.1f} ms; synchronise it (NTP)"
            faults[place] = (FAILED if abs(apart) > _FAIL_S else WARNING, line)
    if faults:
        return complain("clocks", faults, offsets)
    spread = max(offsets.values()) - min(offsets.values())
    return HealthCheck(
        "clocks", OK, f"{spread * 1e3:.1f} ms apart at most, known to {error * 1e3:.1f} ms"
    )


def _ask_time(address: str, port: int, clock: Clock) -> dict[str, Any]:
    best = (float("inf"), 0.0)
    try:
        with socket.create_connection((address, port), timeout=_CONNECT_S) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(_ROUNDS):
                sent, began = clock(), time.perf_counter()
                connection.sendall(b"?")
                answer = connection.recv(8, socket.MSG_WAITALL)
                trip = time.perf_counter() - began
                if len(answer) != 8:
                    raise OSError(None, "hangs up")
                best = min(best, (trip, struct.unpack("!d", answer)[0] - (sent + trip / 2)))
    except OSError as error:
        return {"fault": f"{address}: {error.strerror or error}", "ahead": 0.0, "error": 0.0}
    return {"fault": None, "ahead": best[1], "error": best[0] / 2}
