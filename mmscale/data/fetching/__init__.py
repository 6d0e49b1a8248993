"""Remote shards on the local disk: which bytes are wanted, fetching them once, keeping them within
a bound.

This room stands below ``data/index`` and ``data/planning``, which use it. What it is given of
theirs (shards, data sets, plans) it knows by type alone.
"""
