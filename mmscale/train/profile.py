"""``train.profile_steps``: a trace of some steps, to be opened in Perfetto or chrome://tracing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from mmscale.errors import UserError


def profiled_steps(text: str, steps: int) -> range:
    """``"A-B"`` → steps A to B; ``""`` → none. (YAML reads A:B as a number to the base of 60.)

    Raises `UserError` for another text, and if a run of ``steps`` steps comes to none of them.
    """
    if not text:
        return range(0)
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise UserError(f"train.profile_steps: {text}: write A-B, such as 10-12")
    if int(first) >= steps:
        raise UserError(f"train.profile_steps: {text}: the run's last step is {steps - 1}")
    return range(int(first), int(last) + 1)


class StepProfiler:
    """Writes ``folder/rank-N.json.gz`` when the last of the ``steps`` is done, or the run ends
    before.
    """

    def __init__(self, steps: range, folder: Path, rank: int) -> None:
        self._steps, self._folder, self._rank = steps, folder, rank
        self._trace: profile | None = None

    def before(self, step: int) -> None:
        """Called when a step begins."""
        if self._trace is None and step in self._steps:
            kinds = [
                ProfilerActivity.CPU,
                *([ProfilerActivity.CUDA] if torch.cuda.is_available() else []),
            ]
            self._trace = profile(activities=kinds, record_shapes=True)
            self._trace.start()

    def after(self, step: int) -> None:
        """Called when a step has been launched."""
        if step == self._steps[-1:].stop - 1:
            self.close()

    def close(self) -> None:
        """Write what was traced, if anything was."""
        if self._trace is not None:
            self._trace.stop()
            self._folder.mkdir(parents=True, exist_ok=True)
            self._trace.export_chrome_trace(str(self._folder / f"rank-{self._rank}.json.gz"))
            self._trace = None
