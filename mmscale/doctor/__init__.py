"""What can be known of a cluster before anything is built: one verdict per check, and which machine
is the sick one.

Every check is a file. `collect` gathers facts on a rank by itself; `assess` makes a verdict of the
facts of all ranks.
"""
