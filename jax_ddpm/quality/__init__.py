"""How good images are: feature networks, and distances between two sets of features."""
