"""Explanations: what the decoder looked at for one prompt, with and without the plugin, as pictures."""
