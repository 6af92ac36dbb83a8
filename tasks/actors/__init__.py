"""Everything of Ray: the actors and helpers of a run, and the child processes in which models run."""
