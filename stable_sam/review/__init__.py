"""Review: masks out to annotation tools, and what people made of them back into the table."""
