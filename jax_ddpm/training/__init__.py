"""Training: the state, the pure train step, and the batches that feed it."""
