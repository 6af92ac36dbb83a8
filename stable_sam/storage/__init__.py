"""Reads, writes and lists files and objects by their URI. No other room opens a URI."""
