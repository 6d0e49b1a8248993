"""Pictures and sound: formats, decoding, augmentation."""
