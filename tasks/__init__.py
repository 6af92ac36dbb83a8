"""The Prefect tasks, thin, and the Ray boundary."""
