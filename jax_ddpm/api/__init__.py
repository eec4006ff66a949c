"""The layer for Python users: everything is said once, and each piece is a few lines over the rest.

It adds no state. What it does can be done with the functions below it, in the same numbers.
"""
