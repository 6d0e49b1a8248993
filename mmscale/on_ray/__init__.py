"""Ray as a place to run: reaching a cluster, what fits on it, and training on its workers."""
