"""Refining: turns an image and its prompts into masks, scores and routes."""
