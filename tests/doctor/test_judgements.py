"""What the single checks make of collected facts, without ranks: GPUs that are not here, rates no
CPU has.
"""

import os
import subprocess

import pytest
import torch
from packings import model_config

from mmscale.config import Config, DataConfig, RunConfig
from mmscale.doctor import bandwidth, disk_space, gpus, network, versions
from mmscale.doctor.check import FAILED, OK, WARNING, RankPlace
from mmscale.doctor.examine import _name_places as name_places

PLACES = [RankPlace(0, "a"), RankPlace(8, "b"), RankPlace(16, "c")]


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Puts an nvidia-smi of two GPUs first in PATH; returns a function that sets what it
    answers.
    """
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def answer(facts, health, status=0):
        """``facts``: a line per GPU, without its number and UUID."""
        lines = facts.removesuffix("\\n").split("\\n")
        facts = (
            "\\n".join(f"{line}, {number}, GPU-{number}abc" for number, line in enumerate(lines))
            + "\\n"
        )
        tool = tmp_path / "nvidia-smi"
        tool.write_text(
            f'#!/bin/sh\ncase "$1" in *memory.total*) printf "{facts}";; *) printf "{health}";; '
            f"esac\nexit {status}\n"
        )
        tool.chmod(0o755)
        return gpus.collect()

    return answer


H100 = "NVIDIA H100 80GB HBM3, 81559, 81000, 550.54.15\\n"
SOUND = "0, Not Active, Not Active\\n"


def test_gpus(smi):
    sound = smi(H100 * 2, SOUND * 2)
    assert gpus.driver_of(sound) == "550.54.15"
    check = gpus.assess(dict.fromkeys(PLACES, sound))
    assert check.verdict == OK and "2 x NVIDIA H100 80GB HBM3" in check.text

    def judged(facts, health, **more):
        return gpus.assess(dict.fromkeys(PLACES, sound) | {PLACES[1]: smi(facts, health, **more)})

    lost = judged(H100, SOUND)
    assert (lost.verdict, lost.machines) == (FAILED, ("b",)) and "1 x NVIDIA H100" in lost.text
    broken = judged(H100 * 2, SOUND + "3, Not Active, Not Active\\n")
    assert (broken.verdict, broken.machines) == (
        FAILED,
        ("b",),
    ) and "GPU 1: 3 uncorrected" in broken.text
    hot = judged(H100 * 2, "0, Active, Not Active\\n" + SOUND)
    assert hot.verdict == WARNING and "b: GPU 0 is slowed by heat" in hot.text
    taken = judged(H100 + H100.replace("81000", "20000"), SOUND * 2)
    assert taken.verdict == FAILED and "GPU 1: 64.5 of 86 GB are taken" in taken.text
    dead = judged("Unable to determine the device handle", "", status=15)
    assert dead.verdict == FAILED and "b: nvidia-smi fails: Unable to determine" in dead.text


def test_only_visible_gpus_are_judged(smi, monkeypatch):
    """The second is somebody else's: full, and broken."""
    facts, health = (
        H100 + H100.replace("81000", "0") + H100,
        SOUND + "3, Not Active, Not Active\\n" + SOUND,
    )

    def judged(visible, seen):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
        return gpus.assess({PLACES[0]: smi(facts, health)})

    for visible in ("0,2", "GPU-2,GPU-0abc"):
        check = judged(visible, 2)
        assert check.verdict == OK and "2 x NVIDIA" in check.text, check.text
    for visible in ("1", "0,GPU-1abc"):
        check = judged(visible, len(visible.split(",")))
        assert check.verdict == FAILED and "GPU 1: 3 uncorrected" in check.text
    assert judged("", 0).verdict == OK and "CPUs" in judged("", 0).text
    assert "CUDA_VISIBLE_DEVICES names 9," in judged("0,9", 1).text
    few = judged("0,2", 1)
    assert few.verdict == FAILED and "PyTorch sees 1 of its 2 GPUs" in few.text
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "PyTorch sees 1 of its 2 GPUs" in gpus.assess({PLACES[0]: smi(H100 * 2, SOUND * 2)}).text
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert (
        "PyTorch sees none of its 2 GPUs" in gpus.assess({PLACES[0]: smi(H100 * 2, SOUND * 2)}).text
    )


def test_machines_are_told_apart_by_more_than_their_names():
    """Ranks of a machine need not be neighbours; two machines may have one host name; a rank may
    not have come.
    """
    here = {0: ["a", "x"], 1: ["b", "y"], 2: ["a", "x"], 4: ["b", "z"]}
    assert name_places(here, 5) == ["a", "b#0", "a", "", "b#1"]


def test_versions_name_the_minority():
    same = {"torch": "2.13", "driver": "550.1"}
    collected = {RankPlace(rank, "a" if rank < 2 else "b"): dict(same) for rank in range(3)}
    assert versions.assess(collected).verdict == OK
    collected[RankPlace(2, "b")]["driver"] = "560.1"
    assert (versions.assess(collected).verdict, versions.assess(collected).machines) == (
        WARNING,
        ("b",),
    )
    collected[RankPlace(1, "a")]["torch"] = "2.12"
    check = versions.assess(collected)
    assert (
        check.verdict == FAILED
        and "a: torch 2.12, the others 2.13 (1 of its 2 ranks)" in check.text
    )


def reached(**faults):
    """What three machines report of each other; ``ab`` is what a reports of b."""
    return {
        place: {
            name: {"fault": faults.get(place.machine + name), "ahead": 0.0, "error": 1e-4}
            for name in ("a", "b", "c")
        }
        for place in PLACES
    }


def test_network_names_whom_most_miss():
    assert network.assess_network(reached()).verdict == OK
    cut = network.assess_network(
        reached(ab="10.0.0.2: timed out", cb="10.0.0.2: timed out", ba="10.0.0.1: timed out")
    )
    assert (cut.verdict, cut.machines) == (FAILED, ("b",)) and "a does not reach b" in cut.text


def test_clocks_name_the_one_that_differs_even_the_first():
    def clocks(*ahead):
        return network.assess_clocks(
            {
                place: {"fault": None, "ahead": seconds, "error": 1e-3}
                for place, seconds in zip(PLACES, ahead, strict=False)
            }
        )

    assert clocks(0.0, 0.3, -0.2).verdict == OK
    # The first machine is ahead of the two others.
    first = clocks(0.0, 70.0, 70.2)
    assert (first.verdict, first.machines) == (FAILED, ("a",)) and "a: 70.0 s ahead" in first.text
    assert (
        clocks(0.0, -2.0, 0.0).text.startswith("b: 2.0 s ahead")
        and clocks(0.0, -2.0, 0.0).verdict == WARNING
    )


def test_clocks_are_compared_over_a_socket():
    with network.Listener("127.0.0.1", lambda: 1000.0) as listener:
        peer = network.reach({"b": ("127.0.0.1", listener.port)}, lambda: 990.0)["b"]
    assert (
        peer["fault"] is None
        and peer["ahead"] == pytest.approx(10.0, abs=0.5)
        and 0 < peer["error"] < 0.5
    )
    gone = network.reach({"b": ("127.0.0.1", listener.port)}, lambda: 0.0)["b"]
    assert "127.0.0.1" in gone["fault"]


def test_rates_against_data_sheets():
    name = "NVIDIA H100 80GB HBM3"
    assert bandwidth.expected(name, 1, 8) == 450e9  # NVLink
    assert bandwidth.expected(name, 4, 8) == 400e9  # eight times 400 Gbit/s
    assert bandwidth.expected("NVIDIA A100-PCIE-40GB", 1, 4) == 25e9
    assert bandwidth.expected("NVIDIA GeForce RTX 4090", 1, 2) == 25e9
    assert (
        bandwidth.expected("Unheard of 3000", 1, 8) is None
        and bandwidth.expected(name, 1, 1) is None
    )

    def judged(all_, inside, pairs):
        rates = {
            m: {"all": all_, "inside": i, "pairs": p}
            for m, i, p in zip("abc", inside, pairs, strict=True)
        }
        return bandwidth.assess(rates, name, 8)

    assert judged(330e9, [400e9] * 3, [340e9] * 3).verdict == OK
    wire = judged(30e9, [400e9] * 3, [340e9, 30e9, 340e9])
    assert (wire.verdict, wire.machines) == (
        FAILED,
        ("b",),
    ) and "with either neighbour" in wire.text
    inner = judged(100e9, [400e9, 400e9, 20e9], [340e9, 340e9, 100e9])
    assert (inner.verdict, inner.machines) == (FAILED, ("c",))
    assert bandwidth.is_slow(30e9, name, 3, 8) and not bandwidth.is_slow(330e9, name, 3, 8)
    assert bandwidth.assess({"a": {"all": 1e9, "inside": 1e9}}, "", 2).verdict == OK


@pytest.mark.parametrize("count", [3, 4, 5, 6, 7])
def test_a_slow_machine_among_any_number_is_named(count, monkeypatch):
    """A pair is as fast as its slower machine; ranks of two on each."""
    machines, name = [[2 * at, 2 * at + 1] for at in range(count)], "NVIDIA H100 80GB HBM3"

    def measured(at, slow):
        def rate(groups, device):
            ranks = [rank for group in groups for rank in group]
            assert len(ranks) == len(set(ranks)), "the pairs of a round do not overlap"
            mine = next((group for group in groups if 2 * at in group), None)
            return 0.0 if mine is None else 1e9 if 2 * slow in mine else 90e9

        monkeypatch.setattr(bandwidth, "_in_groups", rate)
        pairs = bandwidth.measure_pairs(machines, torch.device("cpu"))
        return {"all": 1e9, "inside": 400e9, "pairs": pairs}

    for slow in range(count):
        rates = {str(at): measured(at, slow) for at in range(count)}
        assert bandwidth.assess(rates, name, 2).machines == (str(slow),)


def test_a_full_disk(tmp_path):
    """A file system of 64 KiB, too small for one checkpoint."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    config = Config(
        run=RunConfig(dir=str(tmp_path / "runs/one")),
        model=model_config(vocab_size=320),
        data=DataConfig(),
    )
    assert disk_space.assess({PLACES[0]: disk_space.collect(config, 1)}).verdict == OK
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        check = disk_space.assess({PLACES[0]: disk_space.collect(config, 1)})
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert (check.verdict, check.machines) == (FAILED, ("a",)) and "0.1 MB free" in check.text
