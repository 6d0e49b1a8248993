"""Looking for a run's best settings with Ray Tune, over the very same train function."""
