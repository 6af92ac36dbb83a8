"""The format of masks as PNG files."""
