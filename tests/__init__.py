"""Properties of the JAX code alone."""
