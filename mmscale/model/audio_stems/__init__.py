"""Audio stems, one file for each kind of ``model.audio_stem``; `mmscale.model.stem` says what a
stem must carry.
"""
