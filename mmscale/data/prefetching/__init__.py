"""Fetching remote data ahead of its use, which is known: what, when, and what is dropped for it."""
