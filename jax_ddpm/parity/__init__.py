"""The report that compares two frameworks, quantity by quantity. Needs PyTorch."""
