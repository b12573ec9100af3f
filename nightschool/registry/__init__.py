"""Releases: their files, their manifest, and the folder in which they are kept."""
