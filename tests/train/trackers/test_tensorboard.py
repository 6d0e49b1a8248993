"""TensorBoard's files, read back by TensorBoard."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmscale.train.trackers.tensorboard import TensorBoard


def write(folder, start, steps, value):
    tracker = TensorBoard()
    tracker.open(folder, start)
    for step in steps:
        tracker.scalars(step, {"loss": value, "losses/ctc": value / 2})
    tracker.close()


def test_steps_that_are_taken_again_stand_once(tmp_path):
    write(tmp_path, 0, range(4), 8.0)
    write(tmp_path, 2, range(2, 5), 4.0)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    for name, factor in (("loss", 1.0), ("losses/ctc", 0.5)):
        events = [(event.step, event.value) for event in read.Scalars(name)]
        expected = [(0, 8.0), (1, 8.0), (2, 4.0), (3, 4.0), (4, 4.0)]
        assert events == [(step, value * factor) for step, value in expected]
