"""Learn the probability that a mask is good from its scores, and choose thresholds that keep a promise."""
