"""Training of the `nano` base and of the Stable-SAM plugin."""
