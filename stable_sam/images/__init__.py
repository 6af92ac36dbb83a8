"""Images: bytes to upright pixels, their frames, and the tiles in which small objects are asked for."""
