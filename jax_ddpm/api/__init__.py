"""The layer for Python users: each setting is given once, and a few lines train and sample.

It adds no state. The functions that it calls are public too, and give the same numbers.
"""
