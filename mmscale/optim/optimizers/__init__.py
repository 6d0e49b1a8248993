"""The optimisers: one file each, which registers itself in `mmscale.registry.OPTIMIZERS`.

What such a file holds is in `mmscale.optim.optimizer_kind`.
"""
