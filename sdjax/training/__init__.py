"""Training every part from scratch: state, steps, loop, checkpoints."""
