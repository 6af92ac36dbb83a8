"""Explanations: drawings of what the decoder attended to for one prompt, with and without the plugin."""
