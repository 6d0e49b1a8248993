"""The process that loader processes are forked from, started early: it imports what they need while
this one does.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from multiprocessing import forkserver

# Signals by which a job is stopped. The server is deaf to them: loaders end with their rank, which
# may be saving.
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def start_fork_server() -> None:
    """Start it if it does not run; returns at once. Called before torch is imported, it spares a
    second.

    Loaders then share the memory of the imported modules, and do not each import them.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # signal handlers belong to the main thread
    multiprocessing.set_forkserver_preload(["mmscale.data.loading.loader"])
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _STOPS}
    try:
        forkserver.ensure_running()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
