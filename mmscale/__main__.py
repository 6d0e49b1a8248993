"""``python -m mmscale`` is ``mmscale``; launchers such as torchrun start it this way."""

from mmscale.parallel.launcher_watch import end_with_launcher
from mmscale.parallel.process_end import end_after


def _main() -> None:
    end_with_launcher()

    from mmscale.cli import main  # takes a second, in which a launcher may be killed

    main()


if __name__ == "__main__":
    end_after(_main)
