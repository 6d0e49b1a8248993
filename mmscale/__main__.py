"""``python -m mmscale`` is ``mmscale``; launchers such as torchrun start it this way."""

from mmscale.parallel.launcher_watch import end_with_launcher

if __name__ == "__main__":
    end_with_launcher()

    from mmscale.cli import main  # takes a second, in which a launcher may be killed

    main()
