"""The Prefect tasks, which are thin, and in `tasks.actors` everything of Ray."""
