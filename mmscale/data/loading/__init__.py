"""From planned sequences to batches: read, decode, augment, lay out, hand over."""
