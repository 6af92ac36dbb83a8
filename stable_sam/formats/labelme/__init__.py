"""LabelMe (JSON for each image)."""
