"""How a rank ends: with its exit code, after its exit handlers, whatever threads are still at
work.
"""

import subprocess
import sys

import pytest
from patience import patience

SCRIPT = """
from mmscale.parallel.process_end import end_after

def main():
    import atexit, sys, threading, time, torch
    atexit.register(print, "handler")
    print("buffered", end=" ")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()

    def work():
        # Releases the interpreter's lock and asks for it all the time, as Gloo's threads do once.
        x = torch.ones(100)
        while True:
            x + x

    for _ in range(4):
        threading.Thread(target=work, daemon=True).start()
    {end}

if __name__ == "__main__":
    end_after(main)
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("return", 0), ("sys.exit()", 0), ("sys.exit(75)", 75), ("raise ValueError('why')", 1)],
)
def test_the_exit_code_outlives_threads_that_still_work(end, code, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(end=end))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=patience(5),
        check=False,
    )
    if code == 1:  # as Python ends, which such threads may abort
        assert done.returncode in (1, -6) and "ValueError: why" in done.stderr
    else:
        assert (done.returncode, done.stderr, done.stdout) == (
            code,
            "",
            "buffered thread\nhandler\n",
        )
