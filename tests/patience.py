"""How long tests wait before they call what they wait for a hang."""

import os

_FACTOR = 10 * float(os.environ.get("MMSCALE_TEST_PATIENCE", "1"))
_LEAST_S = 180


def patience(needed_s: float) -> float:
    """Seconds until a test gives up on what takes ``needed_s`` on two idle cores with AVX2 alone.

    Ten times that: three tests run side by side on those cores, each with ranks of its own, so each
    gets a third or less of them, and the machine may be half as fast and have other work. Three
    minutes at the least, as a process that imports torch takes one where its files come from a
    cold, busy disk. A limit costs nothing while nothing hangs, and one that is too low fails what
    is right; MMSCALE_TEST_PATIENCE multiplies all of them.

    Not for what a test is about, such as how soon ranks end with their launcher: such a limit
    stands in the test, with its reason.
    """
    return max(_LEAST_S, _FACTOR * needed_s)
