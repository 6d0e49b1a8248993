"""TensorBoard's event files, in ``run.dir/tensorboard``."""

from __future__ import annotations

from pathlib import Path

from mmscale.registry import TRACKERS


class TensorBoard:
    """See `mmscale.train.tracking.RunTracker`."""

    def open(self, folder: Path, start: int) -> None:
        """See `RunTracker`. What an earlier start wrote of later steps is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """See `RunTracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `RunTracker`."""
        self._writer.close()


TRACKERS.register("tensorboard", TensorBoard)
