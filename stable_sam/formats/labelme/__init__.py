"""The format of LabelMe: a JSON file for each image."""
