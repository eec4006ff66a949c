"""The report that compares JAX with PyTorch, quantity by quantity.

Importing `report` and `speed` does not import PyTorch; their functions do.
"""
