"""Comparisons of two frameworks: jax_ddpm beside PyTorch code.

A test that compares a quantity is named after that quantity.
"""
