"""Image stems, one file for each kind of ``model.image_stem``; `mmscale.model.stem` says what a
stem must carry.
"""
