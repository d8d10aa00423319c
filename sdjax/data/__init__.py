"""Data sets: pictures with captions, ready for training."""
