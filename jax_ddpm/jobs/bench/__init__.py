"""Benchmarks: training steps, sampling, the data path and memory."""
