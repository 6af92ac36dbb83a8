"""Prompts as columns: chunks of many annotations that are checked and converted together."""
