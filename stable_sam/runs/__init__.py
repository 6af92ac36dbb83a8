"""Runs: what one was asked for."""
