"""Reading tar shards once: the index that everything later is computed from."""
