"""Direct exchanges give what the library's own collectives give."""

from conftest import run_module


def test_three_ranks_and_a_group_of_two():
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    done = run_module([*torchrun, "tests/parallel/exchange_ranks.py"])
    assert done.stdout.count("agrees") == 3
