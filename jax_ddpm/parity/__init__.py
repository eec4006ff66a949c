"""The report that compares JAX with PyTorch, quantity by quantity.

Importing `report` and `speed` loads no PyTorch; what they compute does.
"""
