"""A compilation that was killed does not hold up the runs after it for ever; one that is at work is
waited for.
"""

import os
import threading
import time

import pytest
from torch.utils import cpp_extension

from mmscale.parallel.deepspeed_build_lock import clear_stale_lock


@pytest.fixture
def lock(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return os.path.join(cpp_extension._get_build_directory("ours", verbose=False), "lock")


def test_an_old_lock_goes(lock):
    clear_stale_lock("ours", reports=True)
    with open(lock, "w"):
        pass
    hour_ago = time.time() - 3600
    os.utime(lock, (hour_ago, hour_ago))
    clear_stale_lock("ours", reports=True)
    assert not os.path.exists(lock)


def test_a_new_lock_is_waited_for(lock, capsys):
    with open(lock, "w"):
        pass
    threading.Timer(1.5, os.unlink, [lock]).start()
    clear_stale_lock("ours", reports=True)
    assert not os.path.exists(lock)
    assert (
        f"another process compiles ours ({lock}); if it was killed, remove that file"
        in capsys.readouterr().err
    )
