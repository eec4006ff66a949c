"""Files: atomic writing, safe reading of untrusted files, images and figures."""
