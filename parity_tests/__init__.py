"""Comparisons of two frameworks: jax_ddpm beside PyTorch code."""
