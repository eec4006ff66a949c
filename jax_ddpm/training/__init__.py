"""Training: the state, the pure step, its mapping onto devices, checkpoints, the loop."""
