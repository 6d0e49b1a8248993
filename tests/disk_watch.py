"""``python -m disk_watch FOLDER``: the most bytes of the disk that a folder was seen to take.

It looks every few milliseconds until its input is closed, then prints the most and how often it
looked. What a look finds it holds (``O_PATH``), so that no inode is used again, and asks once more:
what has bytes both times had them all at once in between, however much comes and goes. Deleted
files that another process still has open count.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import ExitStack, suppress

Inode = tuple[int, int]


def bytes_at_once(folder: str) -> int:
    """Size or blocks of each file and folder, whichever is more."""
    with ExitStack() as stack:
        handles: dict[Inode, int] = {}
        for path in [*_below(folder), *_open_files(folder)]:
            with suppress(OSError):
                handle = os.open(path, os.O_PATH | os.O_NOFOLLOW * (not path.startswith("/proc")))
                stack.callback(os.close, handle)
                handles[_inode(os.fstat(handle))] = handle
        first = {inode: _size(os.fstat(handle)) for inode, handle in handles.items()}
        in_use = set[Inode]()
        for path in _open_files(folder):
            with suppress(OSError):
                in_use.add(_inode(os.stat(path)))
        total = 0
        for inode, handle in handles.items():
            facts = os.fstat(handle)
            if facts.st_nlink or inode in in_use:
                total += min(first[inode], _size(facts))
        return total


def _below(folder: str) -> list[str]:
    found = [folder]
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found += _below(entry.path) if entry.is_dir(follow_symlinks=False) else [entry.path]
    return found


def _open_files(folder: str) -> list[str]:
    """Links to the files of the folder that other processes have open."""
    found = []
    for process in filter(str.isdecimal, os.listdir("/proc")):
        if int(process) != os.getpid():
            with suppress(OSError):
                for number in os.listdir(f"/proc/{process}/fd"):
                    link = f"/proc/{process}/fd/{number}"
                    with suppress(OSError):
                        found += [link] if os.readlink(link).startswith(folder) else []
    return found


def _inode(facts: os.stat_result) -> Inode:
    return facts.st_dev, facts.st_ino


def _size(facts: os.stat_result) -> int:
    return max(facts.st_size, facts.st_blocks * 512)


def watch(folder: str) -> tuple[int, int]:
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set())).start()
    most, looks = 0, 0
    print("looking", flush=True)
    while True:
        last = over.is_set()
        most, looks = max(most, bytes_at_once(folder)), looks + 1
        if last:
            return most, looks
        over.wait(0.002)


if __name__ == "__main__":
    print(*watch(sys.argv[1]))
