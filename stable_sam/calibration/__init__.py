"""Scores of a mask to the probability that it is good, and thresholds that keep a promise."""
