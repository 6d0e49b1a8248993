"""Two machines on one: network namespaces with addresses and host names of their own, joined by a
virtual cable.

They share the file system, as machines of a cluster share their run folders. Needs root and
Debian's ``iproute2`` and ``util-linux``.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from patience import patience

NEEDED = ("ip", "unshare", "hostname")
INTERFACE = "eth0"


class Node:
    """One machine. ``name`` is its host name, ``address`` its address on the cable."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: list[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Run ``command`` on this machine; stdout and stderr are appended to ``log``."""
        inside = ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c"]
        named = f'hostname {self.name}; exec "$@"'
        with open(log, "ab") as file:
            process = subprocess.Popen(
                [*inside, named, "sh", *command],
                env={**os.environ, **variables},
                stdout=file,
                stderr=file,
            )
        self._started.append(process)
        return process

    def pids(self) -> list[int]:
        """Every process on this machine."""
        told = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False
        ).stdout
        return [int(pid) for pid in told.split()]

    def kill(self) -> None:
        """End every process on this machine at once, as a loss of power does."""
        deadline = time.monotonic() + patience(2)
        while pids := self.pids():
            assert time.monotonic() < deadline, f"{self.name}: {pids} cannot be killed"
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for process in self._started:
            process.wait()
        self._started.clear()

    def cable(self, way: str) -> None:
        """Plug the cable in (``up``) or out (``down``)."""
        _ip("-n", self.name, "link", "set", INTERFACE, way)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def two_nodes(prefix: str = f"mm{os.getpid()}"):
    """Two joined machines; both, and whatever runs on them, are gone afterwards. Skips, saying why,
    where it cannot.
    """
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(
            f"needs root{''.join(f', {name}' for name in missing)}: apt-get install iproute2 "
            "util-linux"
        )
    nodes = [
        Node(f"{prefix}{letter}", f"10.77.0.{number}") for number, letter in ((1, "a"), (2, "b"))
    ]
    folders = [Path("/etc/netns") / node.name for node in nodes]
    known = "".join(f"{node.address} {node.name}\n" for node in nodes)
    try:
        try:
            for node in nodes:
                _ip("netns", "add", node.name)
            first, second = (node.name for node in nodes)
            _ip(
                "link",
                "add",
                INTERFACE,
                "netns",
                first,
                "type",
                "veth",
                "peer",
                "name",
                INTERFACE,
                "netns",
                second,
            )
            for node in nodes:
                _ip("-n", node.name, "address", "add", f"{node.address}/24", "dev", INTERFACE)
                _ip("-n", node.name, "link", "set", "lo", "up")
                node.cable("up")
        except OSError as error:
            pytest.skip(f"network namespaces cannot be made here: {error}")
        for folder in folders:  # `ip netns exec` lays it over /etc/hosts
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
        yield nodes
    finally:
        for node, folder in zip(nodes, folders, strict=True):
            node.kill()
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                _ip("netns", "delete", node.name)
