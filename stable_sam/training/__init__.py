"""Training of the `nano` base, of the Stable-SAM plugin and of HQ-SAM's branch."""
