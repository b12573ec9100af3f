"""Releases: their files, their manifest, and the folder that keeps them."""
