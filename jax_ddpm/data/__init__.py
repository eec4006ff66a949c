"""Data sources, the batch loader, and the images that ship with the package."""
