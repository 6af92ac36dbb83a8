"""Measure how good masks are against true masks, which people drew."""
