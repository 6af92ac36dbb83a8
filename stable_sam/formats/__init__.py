"""Files of other tools: `read_*` makes prompts of them, `write_*` makes them of masks."""
