"""What a run is worth: likelihoods, and distances between images and data."""
