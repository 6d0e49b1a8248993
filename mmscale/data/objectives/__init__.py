"""Data's half of every objective: one file each, found by its name (`mmscale.registry`)."""
