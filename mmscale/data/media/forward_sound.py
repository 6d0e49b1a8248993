"""A sound file that is read from one place onwards, without a seek between two reads."""

from __future__ import annotations

import soundfile


class ForwardSound(soundfile.SoundFile):
    """`soundfile.SoundFile`, but for the seek to where it is that soundfile makes after every read.

    A frame of MP3 needs bits of the frames before it, which libsndfile does not have after a seek:
    the first part of the next read is then wrong, by up to full scale. `seek` still works.
    """

    def seekable(self) -> bool:
        """soundfile asks before it seeks."""
        return False
