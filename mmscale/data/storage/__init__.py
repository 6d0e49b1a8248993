"""Where shards lie: folders, object stores, web servers."""
