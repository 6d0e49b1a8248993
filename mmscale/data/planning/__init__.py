"""Which samples every step holds, and which rank reads them, before a byte of payload is read."""
