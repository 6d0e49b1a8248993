"""Where a run's numbers can go beside metrics.jsonl: one file each.

A file holds a class as `mmscale.train.tracking.RunTracker` describes it, and registers the class in
`mmscale.registry.TRACKERS` under the file's name.
"""
