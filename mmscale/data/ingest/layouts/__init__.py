"""Layouts that people have their data in: each module is one, named as ``--layout`` is."""
