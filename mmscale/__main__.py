"""``python -m mmscale`` is ``mmscale``; launchers such as torchrun start it this way."""

from mmscale.cli import main

if __name__ == "__main__":
    main()
