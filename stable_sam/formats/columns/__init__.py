"""Chunks of many annotations, which are converted and checked column by column."""
