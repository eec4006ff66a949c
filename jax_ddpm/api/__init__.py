"""The layer for Python users: each decision is made once, in few lines over the rooms below.

It adds no state. Everything it does can be done with the functions below it, with the same numbers.
"""
