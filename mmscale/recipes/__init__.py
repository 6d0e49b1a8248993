"""Ready configs for the jobs that people begin with, fitted to the training samples they get."""
