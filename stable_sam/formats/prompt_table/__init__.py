"""The format of prompts as a table: Parquet or JSON Lines."""
