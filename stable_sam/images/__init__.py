"""Decodes image files to upright pixels, converts between their frames, and chooses the tiles for small objects."""
