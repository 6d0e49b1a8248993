"""A process that keeps its heap is given no new pages for a step like those before."""

import subprocess
import sys

import pytest

STEPS, LAST = 12, 4
PROGRAM = f"""
import resource, sys, torch
from mmscale.parallel.malloc import keep_heap
if sys.argv[1] == "keeps":
    keep_heap()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
gains = [torch.ones(1, requires_grad=True) for _ in range(4)]
for step in range({STEPS}):
    if step == {STEPS - LAST}:
        before = faults()
    x = torch.ones(10 << 20)  # 40 MiB
    for gain in gains:
        x = torch.relu(x * gain)
    x.sum().backward()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_used_again():
    freed = {}
    for how in ("keeps", "gives"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        )
        freed[how] = int(done.stdout)
    if freed["gives"] < LAST * 8 * 10_000:
        pytest.skip("this machine's allocator keeps such memory by itself")
    assert freed["keeps"] < freed["gives"] / 10, freed
