"""Ray actors: everything of Ray, and the processes in which models run."""
