"""The diffusion process as pure functions of arrays: no network, no randomness, no I/O."""
