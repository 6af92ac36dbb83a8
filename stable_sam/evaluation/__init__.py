"""How good the masks are, against masks that people drew."""
