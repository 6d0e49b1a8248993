"""Trouble of the machine, kept apart from trouble of the data.

What is broken in the data is masked, on every rank alike. A process that has no memory or no file
descriptor left would mask what other ranks can read, so that ends the run.
"""

from __future__ import annotations

import errno

from mmscale.errors import UserError


def check_host(error: BaseException, what: str) -> None:
    """Raise `UserError` if ``error``, met at ``what``, is the machine's."""
    number = getattr(error, "errno", None)
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        remedy = "lower data.workers, data.prefetch or media.max_image_pixels"
        raise UserError(f"{what}: this process has no memory left; {remedy}") from error
    if number in (errno.EMFILE, errno.ENFILE):
        raise UserError(
            f"{what}: too many open files; raise the limit, such as `ulimit -n 65536`"
        ) from error
