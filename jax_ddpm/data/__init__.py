"""Image sources, the loader, and the images that ship with the package."""
