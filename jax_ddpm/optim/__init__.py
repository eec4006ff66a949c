"""Optimisers, learning rates, and moving averages of the parameters."""
