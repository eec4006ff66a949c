"""Benchmarks: training steps and sampling beside PyTorch, data sources, and peak memory."""
