"""Stable-SAM: masks from weak boxes and points, with a stability score for every prompt."""

__version__ = "0.3.0.dev0"
