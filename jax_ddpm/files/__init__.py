"""Files: written atomically, read from strangers without risk, images and figures."""
