"""Formats of other tools: readers turn their files into prompts, writers turn masks into their files."""
