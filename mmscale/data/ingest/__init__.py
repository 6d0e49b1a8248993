"""Folders and tables of media become tar shards with an index."""
