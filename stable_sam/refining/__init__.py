"""Refining: an image and its prompts to masks, scores and routes."""
