"""The embedded data set: real handwritten digits, synthetic speech, captions in two languages."""
