"""Review: exports masks to annotation tools, and imports what people decided there into the table."""
