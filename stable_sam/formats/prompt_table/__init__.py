"""Prompts as a table: Parquet, CSV or JSON lines."""
