"""Releases: safetensors, a manifest of hashes, a model card, a signature; exported, verified,
opened.
"""
